"""Hardware files: those of the package, and what is wrong with others."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from qwen_megatron.errors import ConfigError
from qwen_megatron.planning.machine import load_machine, machines


@pytest.mark.parametrize("name", machines())
def test_every_number_of_the_package_has_a_source(name: str) -> None:
    load_machine(name)
    lines = machines()[name].read_text(encoding="utf-8").splitlines()
    above = ""
    for line in lines[1:]:
        text, mark, note = line.partition("#")
        if text.strip() and "ranks_per_node" not in text:
            assert (note or above).strip(), f"{name}: {line} has no source"
        above = note if mark and not text.strip() else ""


def test_all_problems_of_a_file_at_once(tmp_path: Path) -> None:
    content = yaml.safe_load(machines()["h100-80gb"].read_text(encoding="utf-8"))
    del content["peak_tflops"]
    broken = {**content, "memory_bytes": -1, "peek_tflops": 989, "kernels": "fast", "product_efficiency": {1.0: "much"}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(broken), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_machine(str(path))
    text = str(caught.value)
    for part in (
        "peek_tflops: unknown key; the closest known one is peak_tflops",
        "peak_tflops: is needed",
        "memory_bytes=-1: must be a number above 0",
        "kernels=fast",
        "product_efficiency: must map",
    ):
        assert part in text


def test_a_name_that_is_none_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="the closest one is h100-80gb"):
        load_machine("h100-80g")


def test_the_rate_of_products_lies_between_those_of_the_table() -> None:
    machine = load_machine("h100-80gb")
    sizes = sorted(machine.product_efficiency)
    for low, high in itertools.pairwise(sizes):
        rates = [machine.product_rate(size) for size in (low, (low * high) ** 0.5, high)]
        assert rates == sorted(rates)
        assert rates[1] == pytest.approx((rates[0] + rates[2]) / 2)
    assert machine.product_rate(1e30) == pytest.approx(machine.product_efficiency[sizes[-1]] * 989e12)
