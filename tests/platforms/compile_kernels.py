"""Compiles the Triton kernels for compute capability 9.0, for which no GPU is needed; prints each kernel's name."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qwen_megatron.platforms import triton_kernels

H100 = GPUTarget("cuda", 90, 32)
STRIDES = {"row_stride": "i32", "head_stride": "i32", "sign": "fp32"}
SIZES = ("is_shared", "half", "head_block")


def compile_for_h100(kernel: object, signature: dict[str, str], constants: dict[str, object], num_warps: int) -> None:
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=H100, options={"num_warps": num_warps})
    assert compiled.asm["cubin"]
    print(kernel.__name__)  # type: ignore[attr-defined]


def main() -> None:
    for dtype in ("bf16", "fp32"):
        pointers = {"logits": f"*{dtype}", "highest": "*fp32", "total": "*fp32", "width": "i32"}
        compile_for_h100(triton_kernels.exponentiate_rows, pointers, {"columns": triton_kernels.COLUMNS}, 8)
        pointers = {"source": f"*{dtype}", "target": f"*{dtype}", "cos": "*fp32", "sin": "*fp32"}
        for is_shared, blocks in ((True, 16), (False, 16), (True, 1)):
            constants: dict[str, object] = dict(zip(SIZES, (is_shared, 64, blocks), strict=True))
            counts = {"heads": "i32", "rows": "i32"}
            if blocks == 1:
                # Triton takes arguments that are 1 for constants.
                constants, counts = constants | {"heads": 1, "rows": 1}, {}
            compile_for_h100(triton_kernels.rotate_rows, {**pointers, **counts, **STRIDES}, constants, 4)


if __name__ == "__main__":
    main()
