"""Wrong uses of qwen-megatron: exit status, a word of the message, once, and nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qwen_megatron.cli.main import main
from tests.support.wrong_uses import WrongUse, names_of, said_by

FIXTURE = Path(__file__).parents[1] / "fixtures" / "qwen1-mini"

# Command line, in a folder with what `prepared` puts there; exit status; words of the message.
WRONG_USES = [
    # Conversion.
    ("convert to-hf ck taken", 2, ["taken: exists; choose another name, or replace it with --overwrite"]),
    ("convert to-hf ck run --overwrite", 2, ["run: does not hold a model, --overwrite does not replace it"]),
    ("convert to-hf ck ids.npy --overwrite", 2, ["ids.npy: is not a folder"]),
    ("convert to-hf run out", 1, ["run is not a complete checkpoint"]),
    ("convert to-hf ck out --format gguf", 2, ["invalid choice: 'gguf'"]),
    ("convert to-hf ck out --model draft", 1, ["holds no model 'draft'; it has model"]),
    ("convert from-hf llama out", 1, ["must be qwen (the first series), qwen2 (Qwen1.5"]),
    ("convert from-hf run out", 1, ["config.json"]),
    ("convert verify ck llama", 1, ["must be qwen (the first series), qwen2 (Qwen1.5"]),
    # Logits.
    ("logits ck --input-ids float.npy --output out", 1, ["float.npy: has dtype float64; must be int64"]),
    ("logits ck --input-ids large.npy --output out", 1, ["large.npy: id 99999 at [0, 1]", "(0 to 159)"]),
    ("logits ck --input-ids flat.npy --output out", 1, ["flat.npy: has shape [3]; must be [batch, seq]"]),
    ("logits ck --input-ids none.npy --output out", 1, ["none.npy: is not a readable .npy file"]),
    ("logits ck --input-ids ids.npy --output no/out", 2, ["no is not a folder; make it first"]),
    # Generation.
    ("generate ck --prompt=", 2, ["--prompt='': must have at least one character"]),
    ("generate ck --prompt a --max-new-tokens 0", 2, ["'0' is not a positive number"]),
    ("generate --prompt a", 2, ["the following arguments are required: SOURCE"]),
    ("chat ck", 1, ["ck: its vocabulary has 160 rows, Qwen's tokenizer 151851 tokens"]),
    ("chat ck --temperature -1", 2, ["temperature=-1: must be between 0"]),
    ("serve ck --port 0", 1, ["ck: its vocabulary has 160 rows, Qwen's tokenizer 151851 tokens"]),
    ("serve ck --max-running 0", 2, ["'0' is not a positive number"]),
    # What a run left.
    ("report run", 2, ["run: holds neither metrics.jsonl nor starts.jsonl"]),
    ("trace run --step 1", 2, ["run"]),
    ("trace run --step one", 2, ["invalid int value: 'one'"]),
    # Settings.
    ("show-config nope.yaml", 2, ["nope.yaml: no such file"]),
    ("show-config model.preset=qwen-8b", 2, ["model.preset=qwen-8b", "qwen-7b"]),
    ("show-config model.preset=tiny optimizer.lr=fast", 2, ["optimizer.lr=fast"]),
    ("show-config model.preset=tiny optimiser.lr=1", 2, ["optimiser.lr=1: unknown key"]),
    ("show-config model.preset=tiny parallel.tensor_model_parallel_size=3", 2, ["tensor_model_parallel_size", "use "]),
    ("show-config model.preset=tiny --depth 3", 2, ["unrecognized arguments: --depth"]),
    ("pretrain model.preset=tiny data.blend=[none] --dry-run", 2, ["none"]),
    ("pretrain model.preset=tiny data.blend=[none] checkpoint.directory=ids.npy --dry-run", 2, ["ids.npy", "none"]),
    ("check-parity model.preset=tiny --steps 0", 2, ["--steps 0: must be at least 1"]),
    ("check-parity model.preset=tiny --layouts tp2-xx", 2, ["xx"]),
    # No command, and one that is none.
    ("", 2, ["the following arguments are required: COMMAND"]),
    ("train", 2, ["train: no such command; did you mean pretrain?"]),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    assert main(["convert", "from-hf", str(FIXTURE), str(folder / "ck")]) == 0
    for name in ("taken", "run", "llama"):
        (folder / name).mkdir()
    (folder / "run" / "notes").write_text("mine")
    (folder / "llama" / "config.json").write_text('{"model_type": "llama"}')
    ids = {"ids": [[1, 2]], "large": [[1, 99999]], "flat": [1, 2, 3], "float": [[0.5]]}
    for name, values in ids.items():
        np.save(folder / f"{name}.npy", np.array(values))
    return folder


@pytest.mark.parametrize("use", WRONG_USES, ids=names_of(WRONG_USES))
def test_wrong_use(
    use: WrongUse,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = said_by(main, use, prepared, tmp_path / "here", capsys, monkeypatch)
    assert len(re.findall(r"^qwen-megatron[ a-z-]*: (?:error|[0-9]+ problems?)", shown, re.MULTILINE)) == 1, shown
