"""One compressed file for several workers: its blocks are encoded by all of them, and nothing else changes."""

import gzip
import random
import threading
import time
from pathlib import Path

import orjson
import pytest

from data_tools.corpus.sidecar import Sidecar
from data_tools.io import streams
from data_tools.readers import line_blocks
from data_tools.stages.tokenize_files import TokenizeOptions, tokenize
from data_tools.tokenizer.batch_encoder import BatchEncoder, EncodedBatch, Place


def lines() -> list[bytes]:
    """Records of which the kernel takes most, some are left to the parser, some give no document."""
    chooser = random.Random(1)
    found = []
    for number in range(1500):
        text = f"document {number} " + "lorem ipsum dolor " * chooser.randrange(40)
        kind = chooser.randrange(20)
        found.append(
            b'{"te\\u0078t":"odd"}'
            if kind == 0
            else b"broken"
            if kind == 1
            else b"  "
            if kind == 2
            else orjson.dumps({"text": text if kind > 3 else "e\u0301 " + text})
        )
    found[700] = orjson.dumps({"text": "a long line of many words " * 4000})
    return found


@pytest.mark.parametrize(("is_cut", "shuffle"), [(False, True), (True, False)])
def test_the_bytes_and_the_list_are_those_of_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cut: bool, shuffle: bool
) -> None:
    threads: dict[int, set[int]] = {}
    encode_block = BatchEncoder.encode_block

    def watched(self: BatchEncoder, block: line_blocks.LineBlock, place: Place) -> EncodedBatch:
        threads.setdefault(workers, set()).add(threading.get_ident())
        time.sleep(0.002)  # So that every thread has its turn.
        return encode_block(self, block, place)

    monkeypatch.setattr(BatchEncoder, "encode_block", watched)
    monkeypatch.setattr(streams, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(line_blocks, "_BLOCK_BYTES", 20_000)
    monkeypatch.setattr(line_blocks, "LONG_LINE_BYTES", 50_000)
    source = tmp_path / "in.jsonl.gz"
    packed = gzip.compress(b"\n".join(lines()))
    source.write_bytes(packed[: -len(packed) // 5] if is_cut else packed)
    results = []
    for workers in (1, 3):
        prefix = tmp_path / f"c{workers}"
        # Many records are compared with the reference, each by its own text.
        options = TokenizeOptions(workers=workers, shuffle=shuffle, check_interval=10, tokens_in_memory=100_000)
        sidecar = tokenize([source], prefix, options)
        assert sidecar == Sidecar.read(prefix)
        files = [Path(f"{prefix}.{suffix}").read_bytes() for suffix in ("bin", "idx", "crc", "rejected.jsonl")]
        results.append((files, sidecar.rejected, sidecar.records_in))
    assert results[0] == results[1]
    assert results[0][1]["not_json"] > 20
    assert results[0][1].get("truncated_stream", 0) == is_cut
    assert len(threads[1]) == 1
    assert len(threads[3]) == 3
