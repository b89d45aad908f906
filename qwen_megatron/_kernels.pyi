from collections.abc import Sequence

def few_rows(
    rows: int, matrix: int, is_bf16: bool, out: int, count: int, height: int, width: int, threads: int
) -> None: ...
def rms_norm(
    in_: int, weight: int, out: int, is_bf16: bool, count: int, width: int, eps: float, threads: int, /
) -> None: ...
def gate(in_: int, out: int, is_bf16: bool, count: int, width: int, threads: int, /) -> None: ...
def rotate(
    in_: int,
    cosines: int,
    sines: int,
    out: int,
    is_bf16: bool,
    shape: tuple[int, int, int, int],
    steps: tuple[int, ...],
    angle_steps: tuple[int, int],
    threads: int,
    /,
) -> None: ...
def attention(
    queries: int,
    keys: int,
    values: int,
    out: int,
    is_bf16: bool,
    shape: tuple[int, int, int, int],
    steps: tuple[int, ...],
    lengths: Sequence[int],
    window: int,
    scale: float,
    threads: int,
    /,
) -> None: ...
def layer_step(
    is_bf16: bool,
    sizes: tuple[int, int, int, int, int, int],
    weights: Sequence[int],
    eps: float,
    scale: float,
    window: int,
    positions: tuple[int, int, int],
    angle_step: int,
    cache: tuple[int, int],
    cache_steps: tuple[int, ...],
    offsets: Sequence[int],
    in_: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def is_fast() -> bool: ...
