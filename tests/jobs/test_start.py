"""What a start would do and what refuses it, found out from small files: the dry run and the start say the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from qwen_megatron.checkpoint.manifest import hashed, write_manifest, write_synced
from qwen_megatron.checkpoint.state import CheckpointState, ModelState, config_sections
from qwen_megatron.cli.main import main
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.config.serialize import to_dict
from qwen_megatron.jobs.blend import open_blend
from qwen_megatron.jobs.failure import FAILURE, settings_digest, write_failure
from qwen_megatron.train.state import TrainState
from tests.jobs.test_failure import failure
from tests.support.corpora import write_byte_corpus

BATCH = 8


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    # A start that is not refused would end here; torch is loaded in this process anyway.
    monkeypatch.setitem(sys.modules, "qwen_megatron.jobs.pretrain", None)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return {name: write_byte_corpus(folder / name, count) for name, count in (("one", 10), ("two", 12))}


@pytest.fixture
def good(corpora: dict[str, Path], tmp_path: Path) -> list[str]:
    """Settings of a run of 40 steps."""
    return [
        "model.preset=tiny",
        "model.vocab_size=257",
        "parallel.platform=cpu",
        "training.train_iters=40",
        f"training.global_batch_size={BATCH}",
        "training.seq_length=16",
        f"data.blend=[{corpora['one']}]",
        f"checkpoint.directory={tmp_path / 'run'}",
    ]


def resolved(settings: list[str]) -> ResolvedConfig:
    return resolve(load_config(None, settings))


def save(folder: Path, settings: list[str], *, weights_only: bool = False) -> Path:
    """A checkpoint without tensors, as a run with these settings leaves it after the step in its name."""
    config, step = resolved(settings), int(folder.name.rpartition("_")[2])
    folder.mkdir(parents=True)
    state = CheckpointState(
        train_state=TrainState(iteration=step, consumed_samples=step * BATCH, consumed_tokens=step * BATCH * 16),
        models={"model": ModelState(config=to_dict(config.model), optimizer=[] if weights_only else [{"step": step}])},
        config=config_sections(config),
        data=open_blend(config).sources(step * BATCH),
        environment={},
    )
    write_synced(folder / "state.json", state.to_json())
    write_manifest(folder, {"state.json": hashed(folder / "state.json")})
    (folder.parent / "latest").write_text(folder.name + "\n")
    return folder


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def planned(settings: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a dry run says of the start."""
    assert main(["pretrain", *settings, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("start   "))
    return [lines[first].removeprefix("start   "), *lines[first + 1 :]]


def refused(settings: list[str], directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Why a dry run and a start are refused, with status 2 and nothing changed."""
    before = content(directory)
    told = set()
    for dry in ([], ["--dry-run"]):
        assert main(["pretrain", *settings, *dry]) == 2
        told.add(capsys.readouterr().err)
    assert content(directory) == before
    (message,) = told
    return message


def test_a_dry_run_says_what_the_start_would_do(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned(good, capsys) == ["a new run"]
    first, second = (save(tmp_path / "run" / f"iter_{step:07d}", good) for step in (10, 20))
    assert planned(good, capsys) == [f"goes on from step 20 of 40 in {second}"]
    assert planned([*good, f"checkpoint.load={first}"], capsys) == [f"goes on from step 10 of 40 in {first}"]
    assert planned([*good, "checkpoint.load=none"], capsys) == ["a new run"]
    assert planned([*good, "training.exit_iter=20"], capsys) == [
        f"finished: {second} is step 20 of 20, nothing is left to train"
    ]
    allowed = [*good, "optimizer.weight_decay=0.2", "checkpoint.allow_changes=[optimizer.weight_decay]"]
    assert planned(allowed, capsys)[1:] == [
        "allowed: optimizer.weight_decay is 0.2, the checkpoint was trained with 0.1"
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr is 0.001, the checkpoint was trained with 0.0003"),
        ("training.global_batch_size=16", "training.global_batch_size is 16, the checkpoint was trained with 8"),
        ("training.seq_length=32", "training.seq_length is 32, the checkpoint was trained with 16"),
        ("model.num_layers=6", "Weights of another shape cannot be gone on with"),
        ("data.blend=[{two}]", "now but not then: {two}"),
    ],
)
def test_a_change_on_a_checkpoint_is_refused_before_anything_is_touched(
    change: str,
    told: str,
    good: list[str],
    corpora: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "run" / "iter_0000020", good)
    settings = [*good, change.format(**corpora)]
    assert told.format(**corpora) in refused(settings, tmp_path, capsys)


def test_a_longer_run_is_refused_with_two_ways_on(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "run" / "iter_0000020", good)
    longer = [*good, "training.train_iters=400"]
    message = refused(longer, tmp_path, capsys)
    assert "optimizer.lr_decay_iters is not given it follows training.train_iters, 40 then and 400 now" in message
    # What follows the schedule's length comes back with it.
    assert "To keep the checkpoint's, give 'optimizer.lr_decay_iters=40'." in message
    stretch = message.partition("To use the new, add '")[2].partition("'")[0]
    for way in ("optimizer.lr_decay_iters=40", stretch):
        assert planned([*longer, way], capsys)[0].startswith("goes on from step 20 of 400 in ")
    # A length that was given is a change like any other.
    assert "follows" not in refused([*good, "optimizer.lr_decay_iters=30"], tmp_path, capsys)


def test_damage_in_small_files_is_passed_over_as_a_start_does(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (save(tmp_path / "run" / f"iter_{step:07d}", good) for step in (10, 20))
    (second / "state.json").write_text("{")
    assert planned(good, capsys) == [f"goes on from step 10 of 40 in {first}"]
    (first / "manifest.json").unlink()
    assert "none of its 2 checkpoints is whole" in refused(good, tmp_path, capsys)
    for folder in (first, second):
        folder.rename(tmp_path / folder.name)
    assert "`latest` names 'iter_0000020', but there is no checkpoint here" in refused(good, tmp_path, capsys)


def test_a_checkpoint_whose_save_was_cut_off_between_two_names_is_still_there(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "run" / "iter_0000020", good)
    folder.rename(folder.with_name(f".{folder.name}.replaced"))
    assert planned(good, capsys)[0].startswith("goes on from step 20 of 40 in ")


def test_weights_alone_are_nothing_to_go_on_from(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "weights_20", good, weights_only=True)
    told = refused([*good, f"checkpoint.load={folder}"], tmp_path, capsys)
    assert f"holds weights only, a run cannot go on from it; start with checkpoint.init_from={folder}" in told


def qwen2(folder: Path, **changes: object) -> Path:
    """A Hugging Face folder of the shape of `good`, whose weights nobody reads."""
    folder.mkdir()
    config = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "vocab_size": 257,
        "max_position_embeddings": 512,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def shown(settings: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """Section `model` of `show-config`."""
    assert main(["show-config", *settings]) == 0
    section = yaml.safe_load(capsys.readouterr().out)["model"]
    assert isinstance(section, dict)
    return section


def test_the_architecture_of_the_weights_is_taken_unless_it_is_given(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = qwen2(tmp_path / "hf")
    settings = [*good, f"checkpoint.init_from={source}"]
    stretched = [*settings, "model.use_dynamic_ntk=true"]
    model = shown(settings, capsys)
    assert (model["rotary_base"], model["layernorm_epsilon"], model["seq_length"]) == (1e6, 1e-5, 512)
    # The format has no place for it: nothing is said, nothing taken.
    assert shown(stretched, capsys)["use_dynamic_ntk"] is True
    assert planned(stretched, capsys) == [f"a new run with the weights of {source}"]
    given = [*settings, "model.rotary_base=10000"]
    assert shown(given, capsys)["rotary_base"] == 10000
    assert planned(given, capsys)[1:] == [
        f"note: model.rotary_base is 10000 as given, {source} was trained with 1000000"
    ]


def test_without_a_preset_the_whole_architecture_is_that_of_the_weights(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = qwen2(tmp_path / "hf", num_hidden_layers=3, num_key_value_heads=2)
    rest = [setting for setting in good if not setting.startswith("model.")]
    model = shown([*rest, f"checkpoint.init_from={source}"], capsys)
    assert (model["num_layers"], model["num_query_groups"], model["vocab_size"]) == (3, 2, 257)


def test_weights_of_another_shape_are_refused(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = qwen2(tmp_path / "hf", num_hidden_layers=3, vocab_size=300)
    told = refused([*good, f"checkpoint.init_from={source}"], tmp_path, capsys)
    assert f"checkpoint.init_from={source}: model.num_layers=4, but it has 3; model.vocab_size=257, but it has 300" in (
        told
    )
    saved = save(tmp_path / "other" / "iter_0000010", [*good, "model.num_layers=2"])
    assert "model.num_layers=4, but it has 2" in refused([*good, f"checkpoint.init_from={saved}"], tmp_path, capsys)
    # A run's folder is none of its checkpoints.
    told = refused([*good, f"checkpoint.init_from={saved.parent}"], tmp_path, capsys)
    assert f"name one of the checkpoints in it, such as {saved}" in told
    assert told.count(str(saved)) == 1


def test_a_failure_that_would_repeat_refuses_the_same_settings_only(
    good: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    write_failure(directory, failure(0, helps=False, settings=settings_digest(resolved(good))))
    assert "the same start would fail again" in refused(good, tmp_path, capsys)
    # Neither order nor the way in which a value is given makes another start.
    assert "the same start would fail again" in refused([*good, "optimizer.lr=0.0003"], tmp_path, capsys)
    assert planned([*good, "optimizer.lr=1e-4"], capsys) == ["a new run"]
    (directory / FAILURE).unlink()
    assert planned(good, capsys) == ["a new run"]
