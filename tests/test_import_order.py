"""Who may import whom: the layers of the packages, and what may know torch, Megatron's groups and pybind11."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.source_names import (
    PACKAGES,
    ROOT,
    Finding,
    Rule,
    Source,
    all_sources,
    findings,
    is_below,
    layer_of,
    require_kept,
)

# A module may import from its own layer and from those before it.
LAYERS = (
    "data_tools",
    "errors",
    "recipes",
    "libraries",
    "config",
    "_kernels",
    "platforms",
    "parallel",
    "model",
    "data",
    "train",
    "checkpoint",
    "convert",
    "inference",
    "serving",
    "evaluation",
    "alignment",
    "jobs",
    "planning",
    "report",
    "api",
    "cli",
    "__main__",
)
WITHOUT_TORCH = ("data_tools", "errors", "recipes", "libraries", "config")


def wrong_direction(source: Source) -> Iterator[Finding]:
    """Imports of a later layer, and of torch or Megatron in the layers that stand before them."""
    here = layer_of(source.module)
    if here is None:
        here = "errors"  # The package's own __init__ is loaded before everything in it.
    for line, name, _ in source.imports:
        if here in WITHOUT_TORCH and name.partition(".")[0] in ("torch", "megatron"):
            yield line, f"{here} must not import {name}"
        there = layer_of(name)
        if there is not None and LAYERS.index(there) > LAYERS.index(here):
            yield line, f"{here} must not import {name}: {there} stands later"
        if there is None and is_below(name, "qwen_megatron") and here == "data_tools":
            yield line, f"data_tools must not import {name}"


def group_look_up(source: Source) -> Iterator[Finding]:
    """Megatron's global groups outside of parallel/: groups are arguments."""
    if layer_of(source.module) == "parallel":
        return
    for line, name, _ in source.imports:
        if is_below(name, "megatron.core.parallel_state") or is_below(name, "megatron.core.mpu"):
            yield line, f"{name} is looked up outside of parallel/"


RULES: tuple[Rule, ...] = (wrong_direction, group_look_up)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps_the_rule(rule: Rule) -> None:
    require_kept(rule)


# One line that breaks each rule, with the module it stands in: a rule that finds nothing proves nothing.
BREAKS = [
    (wrong_direction, "qwen_megatron.model.loss", "from qwen_megatron.train.step import train_step"),
    (wrong_direction, "qwen_megatron.convert.to_hf", "from qwen_megatron import inference"),
    (wrong_direction, "qwen_megatron.convert.to_hf", "def f():\n    import qwen_megatron.inference.loading"),
    (wrong_direction, "qwen_megatron.data.loader", "from ..train import step"),
    (wrong_direction, "qwen_megatron.data.loader", "importlib.import_module('qwen_megatron.cli.main')"),
    (wrong_direction, "qwen_megatron.config.load", "import torch"),
    (wrong_direction, "qwen_megatron.config.load", "from megatron.core import parallel_state"),
    (wrong_direction, "data_tools.readers.jsonl", "import qwen_megatron"),
    (wrong_direction, "data_tools.readers.jsonl", "from qwen_megatron.errors import DataError"),
    (wrong_direction, "data_tools.readers.jsonl", "import torch.utils"),
    (wrong_direction, "qwen_megatron", "from qwen_megatron.config import load"),
    (group_look_up, "qwen_megatron.model.loss", "from megatron.core import parallel_state"),
]


@pytest.mark.parametrize(("rule", "module", "text"), BREAKS, ids=lambda value: getattr(value, "__name__", None))
def test_rule_finds_what_breaks_it(rule: Rule, module: str, text: str) -> None:
    assert findings(rule, module, text)


def test_rules_find_nothing_in_good_code() -> None:
    text = (
        "from qwen_megatron.model.loss import summed_loss\nfrom data_tools.corpus.reader import Corpus\n"
        "import torch.distributed as dist\nfrom megatron.core.models.gpt import GPTModel\nimport re, pickle"
    )
    assert [findings(rule, "qwen_megatron.train.step", text) for rule in RULES] == [[]] * len(RULES)


def test_every_package_has_a_layer() -> None:
    found = {layer for source in all_sources() if (layer := layer_of(source.module)) is not None}
    assert found <= set(LAYERS)


def test_only_bindings_know_pybind11() -> None:
    """Kernels are plain C++: the files of csrc/ that name pybind11 or Python are the bindings."""
    kernels = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    foreign = [path.name for path in kernels if re.search(r"pybind11|Python\.h", path.read_text())]
    assert len(foreign) >= 5
    assert {name for name in foreign if not name.startswith("bindings")} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_without_torch(package: str) -> None:
    program = f"import {package}, sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert package in loaded
    assert not {"torch", "megatron"} & set(loaded)
