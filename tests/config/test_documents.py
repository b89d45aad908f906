"""The reference is current, the recipes resolve, and the package is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qwen_megatron.config.load import load_config
from qwen_megatron.config.reference import reference
from qwen_megatron.config.resolve import resolve
from qwen_megatron.config.schema import TYPES

ROOT = Path(__file__).parents[2]
RELEASED = ("0.5b", "1.8b", "7b", "14b", "72b")


def test_the_reference_is_current() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference(), "write it again: qwen-megatron show-config --reference > docs/configuration.md"


def test_the_reference_has_every_setting_with_a_meaning() -> None:
    rows = {line.split("|")[1].strip().strip("`"): line.split("|")[-2].strip() for line in reference().splitlines()
            if line.startswith("| `")}  # fmt: skip
    assert rows.keys() == TYPES.keys()
    assert all(meaning.endswith(".") and len(meaning) > 10 for meaning in rows.values())


@pytest.mark.parametrize("size", RELEASED)
def test_a_recipe_is_a_preset_and_the_reports_values(size: str) -> None:
    path = ROOT / "examples" / f"qwen-{size}.yaml"
    resolved = resolve(load_config(path))
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["model"] == {"preset": f"qwen-{size}"}
    assert resolved.training.seq_length == 2048
    assert resolved.tokens_per_step == 4 * 1024 * 1024
    assert resolved.optimizer.lr == 3e-4
    assert resolved.training.precision == "bf16"
    assert resolved.optimizer.lr_warmup_iters == 2000
    assert resolved.data.eval_samples > 0


@pytest.mark.parametrize("size", RELEASED)
@pytest.mark.parametrize("replicas", [1, 2, 8, 16])
def test_a_recipe_fits_any_usual_number_of_replicas(size: str, replicas: int) -> None:
    settings = load_config(ROOT / "examples" / f"qwen-{size}.yaml")
    parallel = resolve(settings).parallel
    resolved = resolve(settings, world_size=replicas * parallel.replica_size)
    assert resolved.data_parallel_size == replicas
    assert resolved.num_microbatches >= parallel.pipeline_model_parallel_size


def test_the_demo_recipe_resolves() -> None:
    resolved = resolve(load_config(ROOT / "examples" / "demo.yaml"))
    assert (resolved.world_size, resolved.data_parallel_size) == (8, 2)


def test_the_package_imports_neither_torch_nor_megatron() -> None:
    code = (
        "import pkgutil, importlib, sys, qwen_megatron.config as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'qwen_megatron.config.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'megatron', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "assert 'qwen_megatron.config.resolve' in sys.modules\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
