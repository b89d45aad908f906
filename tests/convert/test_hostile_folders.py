"""Folders of every format that name code and other places: nothing is imported, nothing written but the output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qwen_megatron.convert.from_hf import from_hf, write_weights
from qwen_megatron.convert.name_map import Format
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.convert.verify import verify
from qwen_megatron.inference.loading import load_for_inference, single_process
from tests.convert.random_weights import TINY, TINY3, RandomWeights

MODULES = ("configuration_evil", "modeling_evil", "tokenization_evil")


def content_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("hf_format", list(Format))
def test_nothing_is_imported_and_nothing_written_elsewhere(
    hf_format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, outputs, home = (tmp_path / name for name in ("inputs", "outputs", "home"))
    for folder in (inputs, outputs, home):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    # Code that lies in the current folder is what an import by name would find first.
    monkeypatch.chdir(inputs)
    monkeypatch.syspath_prepend(inputs)
    hf, canary = inputs / "hf", inputs / "canary"
    write_weights(RandomWeights(TINY3 if hf_format is Format.QWEN3 else TINY), inputs / "made")
    to_hf(inputs / "made", hf, hf_format=hf_format)
    for module in MODULES:
        for folder in (hf, inputs):
            (folder / f"{module}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    named = {
        "AutoConfig": "configuration_evil.C",
        "AutoModelForCausalLM": "modeling_evil.M",
        "AutoTokenizer": [None, "x"],
    }
    for file in ("config.json", "generation_config.json"):
        config = json.loads((hf / file).read_text())
        config |= {"auto_map": named, "_name_or_path": "../../elsewhere", "custom_generate": "modeling_evil.generate"}
        (hf / file).write_text(json.dumps(config))
    (hf / "tokenizer_config.json").write_text(json.dumps({"auto_map": named, "tokenizer_class": "Evil"}))
    before = content_of(inputs)
    from_hf(hf, outputs / "checkpoint")
    to_hf(outputs / "checkpoint", outputs / "again", hf_format=hf_format)
    with single_process("cpu") as groups:
        for by_layers in (False, True):
            assert verify(outputs / "checkpoint", hf, groups, by_layers=by_layers).is_good
        load_for_inference(hf, groups)
    assert content_of(inputs) == before
    assert sorted(path.name for path in outputs.iterdir()) == ["again", "checkpoint"]
    assert not [path for path in (outputs / "again").iterdir() if path.suffix == ".py"]
    assert "auto_map" not in json.loads((outputs / "again" / "config.json").read_text())
    assert content_of(home) == {}
    assert not [name for name in sys.modules if name.rpartition(".")[2] in MODULES]
