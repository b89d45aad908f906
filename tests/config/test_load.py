"""YAML and overrides: what is read, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.config.schema import SECTIONS, TYPES
from qwen_megatron.errors import ConfigError

NOTHING: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}


def problems_of(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    return raised.value.problems


Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_yaml(text: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_yaml


def test_nothing_given_is_the_default_configuration() -> None:
    assert load_config(None, []) == NOTHING
    assert resolve(load_config(None, ["model.preset=tiny"])).optimizer.lr == 3e-4


def test_an_empty_file_and_empty_sections_are_defaults(write: Write) -> None:
    assert load_config(write(""), []) == NOTHING
    assert load_config(write("# nothing\nmodel:\ntraining: {}\n"), []) == NOTHING


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(write: Write) -> None:
    path = write("training: {seed: 1, train_iters: 10}\n")
    given = load_config(path, ["training.seed=2", "training.seed=3"])
    assert given["training"] == {"seed": 3, "train_iters": 10}


def test_a_mapping_override_sets_a_section_and_replaces_a_blend(write: Write) -> None:
    path = write("data: {blend: {a: 1, b: 2}}\n")
    given = load_config(path, ["training={seed: 5, precision: fp32}", "data.blend={c: 3}"])
    assert given["training"] == {"seed": 5, "precision": "fp32"}
    assert given["data"] == {"blend": {"c": 3}}


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("optimizer.lr=3e-4", "optimizer", "lr", 3e-4),
        ("optimizer.lr=1", "optimizer", "lr", 1.0),
        ("training.train_iters=1_000", "training", "train_iters", 1000),
        ("training.train_iters=010", "training", "train_iters", 10),
        ("training.exit_iter=null", "training", "exit_iter", None),
        ("training.exit_iter=", "training", "exit_iter", None),
        ("parallel.sequence_parallel=True", "parallel", "sequence_parallel", True),
        ("checkpoint.directory=007", "checkpoint", "directory", "007"),
        ("checkpoint.directory=runs/1e3", "checkpoint", "directory", "runs/1e3"),
        ("checkpoint.directory=a=b", "checkpoint", "directory", "a=b"),
        ("checkpoint.load=none", "checkpoint", "load", "none"),
        ("data.blend=[a, 2024, c/d.e]", "data", "blend", ["a", "2024", "c/d.e"]),
        ("data.blend={a/b.c: 0.5, 2024: 1}", "data", "blend", {"a/b.c": 0.5, "2024": 1}),
    ],
)
def test_values_are_read_as_yaml_of_the_fields_type(override: str, section: str, name: str, value: object) -> None:
    read = load_config(None, [override])[section][name]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.train_iters=abc", "must be an integer; use 572205 (the default)"),
        ("training.train_iters=9**9**9", "must be an integer; use 572205 (the default)"),
        ("training.train_iters=true", "must be an integer; use 572205 (the default)"),
        ("training.train_iters=10.0", "must be an integer; use 10"),
        ("training.train_iters=1e3", "must be an integer; use 1000"),
        ("training.train_iters=", "must be an integer; use 572205 (the default)"),
        ("training.train_iters=[1]", "must be an integer; use 572205 (the default)"),
        ("training.train_iters={a: 1}", "must be an integer; use 572205 (the default)"),
        ("training.exit_iter=x", "must be an integer or null"),
        ("optimizer.lr=fast", "must be a number; use 0.0003 (the default)"),
        ("optimizer.lr=true", "must be a number; use 0.0003 (the default)"),
        ("parallel.sequence_parallel=1", "must be true or false"),
        ("model.use_dynamic_ntk=1", "must be true or false"),
        ("parallel.sequence_parallel=maybe", "must be true or false; use false (the default)"),
        ("checkpoint.directory=[a]", "must be a string"),
        ('checkpoint.directory="a\\0b"', "must not contain control characters"),
        ('data.blend=["a\\ud800"]', "must not contain control characters"),
        ('data.blend={"a\\tb": 1}', "must not contain control characters"),
        ("checkpoint.load=null", "must be a string; use auto (the default)"),
        ("data.blend={a: 1, a: 2}", "a is given twice (line 1); keep one"),
        ("training.train_iter=5", "unknown key; the closest known one is training.train_iters"),
        ("trainig.train_iters=5", "unknown key; the closest known one is training.train_iters"),
        ("train_iters=5", "unknown key; the closest known one is training.train_iters"),
        ("tensor_model_parallel_size=2", "unknown key; the closest known one is parallel.tensor_model_parallel_size"),
        ("parallel.Tensor_model_parallel_size=2", ("unknown key; the closest known one is "
         "parallel.tensor_model_parallel_size")),
        ("parallel.expert_model_parallel_size=2", ("unknown key; the closest known one is "
         "parallel.tensor_model_parallel_size")),
        ("data.blend.a=1", "unknown key; the closest known one is data.blend"),
        ("model=5", "is a section; name one of its settings, such as model.preset"),
        ("training.seed=[", "line 1: not valid YAML"),
        ("training.seed=*a", "line 1: not valid YAML: found undefined alias 'a'; quote special characters"),
    ],
)  # fmt: skip
def test_a_bad_override_is_refused_with_its_key_value_and_rule(override: str, problem: str) -> None:
    (found,) = problems_of(None, override)
    assert found.startswith(f"{override}: {problem}") or found.partition(": ")[2].startswith(problem)
    assert found.startswith(override.partition("=")[0] + "=")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch CANARY']",
        "!!python/name:os.system ''",
        "!!python/object/apply:pathlib.Path [a]",
        "!local 3",
        "!!binary aGk=",
        "!!set {a, b}",
    ],
)
def test_tags_are_refused_wherever_they_stand(
    value: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = ("training.seed={}", "data.blend=[{}]", "data.blend={{a: {}}}")
    for place in places:
        (problem,) = problems_of(None, place.format(value))
        assert "tag !" in problem
        assert "is not allowed" in problem
    (problem,) = problems_of(write(f"model:\n  num_layers: {value}\n"))
    assert "is not allowed" in problem
    assert problem.endswith("run.yaml:2)")
    (problem,) = problems_of(write(f"model: {value}\n"))
    assert "is not allowed" in problem
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "${oc.env:HOME,1}",
        "${oc.decode:'5'}",
        "${oc.create:1}",
        "${now:%Y}",
        "${.seed}",
        "${training.${model.preset}}",
        "a${oc.env:HOME}b",
        "${training.seed",
    ],
)
def test_resolvers_and_the_environment_are_refused(value: str) -> None:
    (problem,) = problems_of(None, f'checkpoint.directory="{value}"')
    assert "only references of the form ${section.key} are allowed" in problem


def test_simple_references_are_followed(write: Write) -> None:
    path = write('checkpoint: {directory: runs/a, init_from: "${checkpoint.directory}/x"}\n')
    given = load_config(path, ["optimizer.lr_decay_iters=${training.train_iters}", "training.train_iters=77"])
    assert given["checkpoint"]["init_from"] == "runs/a/x"
    assert given["optimizer"]["lr_decay_iters"] == 77
    assert load_config(path, ["data.blend=['${checkpoint.directory}/c']"])["data"]["blend"] == ["runs/a/c"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["training.seed=${training.sed}"], "refers to the unknown key training.sed; the closest known one is "),
        (["training.seed=${training.seed}"], "which refers back to it"),
        (["training.seed=${data.num_workers}", "data.num_workers=${training.seed}"], "which refers back to it"),
        (["training.seed=${parallel.sequence_parallel}"], "must be an integer; use 1234 (the default)"),
        (["training.seq_length=${model.seq_length}"], "refers to model.seq_length, which is not given here"),
    ],
)
def test_references_that_lead_nowhere_are_refused(overrides: list[str], problem: str) -> None:
    found = problems_of(None, *overrides)
    assert len(found) == 1
    assert problem in found[0]


def test_a_file_names_line_numbers_and_repeated_keys(write: Write) -> None:
    path = write("training:\n  seed: x\n  train_iters: 5\n  train_iters: 6\nmodl:\n  preset: 5\n  numlayers: 4\n")
    assert problems_of(path) == [
        f"training.train_iters: given twice ({path}:3 and 4); keep one",
        f"modl={{...}}: unknown section; the closest known one is model ({path}:5)",
        f"model.numlayers=4: unknown key; the closest known one is model.num_layers ({path}:7)",
        f"training.seed=x: must be an integer; use 1234 (the default) ({path}:2)",
        f"model.preset=5: must be tiny, qwen-0.5b, qwen-1.8b, qwen-7b, qwen-14b or qwen-72b; use qwen-0.5b ({path}:6)",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: {preset: tiny", "line 1: not valid YAML"),
        ("a: b: c", "line 1: not valid YAML: mapping values are not allowed here"),
        ("\tmodel: 1", "line 1: not valid YAML"),
        ("- a\n- b", "must hold sections (model, parallel, "),
        ("just text", "must hold sections (model, parallel, "),
        ("model: {}\n---\nmodel: {}", "line 2: not valid YAML"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 100_000, "nested too deeply"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        (b"model: \x00", "not valid YAML"),
        ("#" * (1 << 20) + "\n", "larger than 1048576 bytes"),
        ("? [a]\n: 1", "a key must be plain text"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(text: str | bytes, problem: str, write: Write) -> None:
    path = write(text)
    (found,) = problems_of(path)
    assert found.startswith(f"{path}: ")
    assert problem in found


def test_a_missing_file_does_not_hide_bad_overrides(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert problems_of(path, "training.seed=x") == [
        f"{path}: no such file",
        "training.seed=x: must be an integer; use 1234 (the default)",
    ]
    assert problems_of(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_aliases_expand_no_further_than_the_schema(write: Write) -> None:
    text = "data:\n  blend: &a [x, x, x]\nmodel: &b {num_layers: *a, hidden_size: *a}\nparallel: *b\n"
    found = problems_of(write(text))
    assert len(found) == 4


def test_derived_values_cannot_be_set(write: Write) -> None:
    (problem,) = problems_of(write("derived: {world_size: 8}\n"))
    assert "is worked out from the other sections" in problem


KEYS = st.sampled_from(sorted(TYPES)) | st.text(max_size=20)
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["1", "0", "-1", "7", "2", "nan", "true", "null", "[]", "{}", "[a]", "{a:", "tiny", "'", "*a", "!!x"]
    ),
    st.sampled_from(["$", "${", "${model.preset}", "${training.seed}", "${a.b}", "\\${a.b}"]),
)


@example(["training.seed=${data.num_workers}", "training.seed=["])
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES).map("=".join), max_size=6))
def test_whatever_is_typed_gives_a_plan_or_problems(overrides: list[str]) -> None:
    try:
        resolved = resolve(load_config(None, ["model.preset=tiny", *overrides]))
    except ConfigError as error:
        found = error.problems
    else:
        found = [f": {resolved.world_size}"]
        assert resolved.num_microbatches * resolved.training.micro_batch_size * resolved.data_parallel_size == (
            resolved.training.global_batch_size
        )
    assert found
    assert all(": " in problem for problem in found)


def test_an_override_without_equals_sign_is_refused() -> None:
    assert problems_of(None, "training.seed") == ["training.seed: an override must be section.key=value"]
