"""pipeline.yaml of any content is read, or refused with a few words, within seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.pipeline.pipeline_file import load_pipeline

READ = "stages: [{kind: read, inputs: [{path: a, source: b}]}"
ODD = {
    "60,000 unknown keys": "output: x\nstages:\n- kind: read\n" + "".join(f"  k{i}: 1\n" for i in range(60_000)),
    "3,000 unknown keys": "output: x\nstages:\n- kind: read\n" + "".join(f"  k{i}: 1\n" for i in range(3_000)),
    "nested": "output: " + "[" * 100_000 + "]" * 100_000,
    "nested mappings": "output: " + "{a: " * 400 + "}" * 400,
    "a long key": f"output: x\nstages: []\n{'k' * 60_000}: 1\n",
    "a key in digits": f"output: x\nstages: []\n0x{'f' * 900}: 1\n",
    "a key that is a list": "? [a]\n: 1\n",
    "digits": f"output: x\nmax_bad: {'9' * 6000}\nstages: []\n",
    "hexadecimal digits": f"output: 0x{'f' * 6000}\nstages: []\n",
    "a date that is none": "output: 2001-99-99\nstages: []\n",
    "null character": 'output: "a\\0b"\n' + READ + "]\n",
    "half of a pair": 'output: "a\\ud800b"\n' + READ + "]\n",
    "kind a list": "output: x\nstages: [{kind: [read]}]\n",
    "kind a mapping": "output: x\nstages: [{kind: {a: b}}]\n",
    "name in digits": f"output: x\nstages: [{{kind: read, name: 0x{'f' * 6000}}}]\n",
    "infinite weight": f"output: x\n{READ}, {{kind: tokenize}}, {{kind: mixture, weights: {{b: .inf}}}}]\n",
    "weight of 400 digits": f"output: x\n{READ}, {{kind: tokenize}}, {{kind: mixture, weights: {{b: {'9' * 400}}}}}]\n",
    "share that is no number": f"output: x\n{READ}, {{kind: tokenize}}, {{kind: mixture, max_epochs: .nan}}]\n",
    "share of 400 digits": f"output: x\n{READ}, {{kind: tokenize}}, {{kind: mixture, max_epochs: {'9' * 400}}}]\n",
    "count of 400 digits": f"output: x\nstages: [{{kind: read, split_bytes: {'9' * 400}, inputs: []}}]\n",
    "merge of nothing": "<<: 5\noutput: x\n",
    "stages a text": "output: x\nstages: abc\n",
    "only an alias": "*a",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_an_odd_file_is_refused_in_seconds(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.process_time()
    with pytest.raises(DataError) as caught:
        load_pipeline(path)
    assert time.process_time() - started < 15
    assert all(str(path) in line and len(line) < 2000 for line in str(caught.value).splitlines())
