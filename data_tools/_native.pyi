from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def gather_documents(
    spool: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    order: npt.NDArray[np.int64],
    end_of_document: int,
    out: npt.NDArray[np.int32],
) -> int: ...
def write_index(path: bytes, lengths: npt.NDArray[np.int32], dtype_code: int, itemsize: int) -> None: ...
def block_crcs(
    piece: npt.NDArray[np.uint8], block_bytes: int, open_crc: int, open_bytes: int, portable: bool = False
) -> tuple[npt.NDArray[np.uint32], int, int]: ...
def json_strings(text: bytes | bytearray, min_bytes: int) -> list[tuple[int, int]]: ...

Texts = Sequence[str] | Sequence[bytes]
Flags = npt.NDArray[np.bool_]

class Characters:
    def __init__(
        self,
        classes: npt.NDArray[np.uint8],
        mapped_code_points: npt.NDArray[np.uint32],
        form_starts: npt.NDArray[np.uint32],
        forms: bytes,
    ) -> None: ...

def needs_context(characters: Characters, texts: Texts, threads: int) -> Flags: ...
def normalize(characters: Characters, text: str) -> str: ...
def words(characters: Characters, text: str) -> list[str]: ...
def statistics(
    characters: Characters, texts: Texts, stop_words: list[str], short_line_length: int, threads: int
) -> npt.NDArray[np.int64]: ...
def code_marks(
    characters: Characters,
    texts: Texts,
    keywords: list[str],
    function_words: list[str],
    openers: list[str],
    max_characters: int,
    threads: int,
) -> npt.NDArray[np.int64]: ...
def clean_c4(
    characters: Characters,
    texts: Texts,
    min_words_per_line: int,
    max_word_length: int,
    page_phrase: str,
    line_phrases: list[str],
    want_kept: bool,
    threads: int,
) -> tuple[npt.NDArray[np.int64], list[str]]: ...
def normalized_hashes(
    characters: Characters, texts: Texts, normalized: Flags, threads: int
) -> npt.NDArray[np.uint64]: ...
def shingles(
    characters: Characters, texts: Texts, normalized: Flags, num_words: int
) -> list[npt.NDArray[np.uint64]]: ...
def minhash_signatures(
    characters: Characters,
    texts: Texts,
    normalized: Flags,
    num_words: int,
    num_functions: int,
    seed: int,
    threads: int,
) -> npt.NDArray[np.uint64]: ...
def band_keys(signatures: npt.NDArray[np.uint64], bands: int) -> npt.NDArray[np.uint64]: ...
def join_components(edges: npt.NDArray[np.int64], roots: npt.NDArray[np.int64]) -> None: ...

class LanguageModel:
    def __init__(self, content: bytes) -> None: ...
    @property
    def labels(self) -> list[str]: ...
    def predict(self, texts: Texts, threads: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]: ...

class NgramIndex:
    def __init__(self, n: int, min_words: int, short_n: int) -> None: ...
    def add(self, characters: Characters, normalized: str, item: int) -> int: ...
    def find(self, characters: Characters, texts: Texts, normalized: Flags, threads: int) -> npt.NDArray[np.int64]: ...
    def __len__(self) -> int: ...

def ngram_features(
    characters: Characters, texts: Texts, max_ngram: int, bits: int, threads: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.float32]]: ...
def ngram_scores(
    characters: Characters, texts: Texts, weights: npt.NDArray[np.float32], max_ngram: int, bits: int, threads: int
) -> npt.NDArray[np.float64]: ...

class LogisticLoss:
    def __init__(
        self,
        offsets: npt.NDArray[np.int64],
        columns: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        labels: npt.NDArray[np.uint8],
        num_columns: int,
    ) -> None: ...
    def evaluate(self, weights: npt.NDArray[np.float64], threads: int) -> tuple[float, npt.NDArray[np.float64]]: ...

def pretokens(text: str) -> list[str]: ...
def pattern_kinds() -> npt.NDArray[np.uint8]: ...

class PretokenCounts:
    def __init__(self, threads: int) -> None: ...
    def add(self, texts: Texts, group: int) -> None: ...

class BytePairs:
    def __init__(self, tokens: list[bytes]) -> None: ...
    def encode(self, pretoken: bytes) -> list[int]: ...
    def __len__(self) -> int: ...

class MergeLearner:
    def __init__(
        self,
        base: BytePairs,
        counts: PretokenCounts,
        factors: npt.NDArray[np.uint64],
        min_count: int,
        max_token_bytes: int,
        threads: int,
    ) -> None: ...
    def learn(self, most: int) -> int: ...
    def merges(self) -> list[tuple[int, int, int]]: ...
    def num_tokens(self) -> list[int]: ...

def count_records(block: bytes, begins_file: bool, max_line_bytes: int) -> tuple[int, int]: ...

class EncodedLines:
    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    records: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    odd: list[tuple[int, int, int, int]]
    num_records: int

class TextEncoder:
    def __init__(self, ranks: bytes, nfc_classes: npt.NDArray[np.uint8]) -> None: ...
    def encode_batch(self, texts: Texts) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]: ...
    def encode_lines(self, block: bytes, text_key: str, begins_file: bool, max_line_bytes: int) -> EncodedLines: ...
    def count_lookups(self, text: str) -> int: ...
    def __len__(self) -> int: ...
