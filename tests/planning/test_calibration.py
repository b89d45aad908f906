"""A machine measured: the file can be planned with, and real steps come out as they took."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from qwen_megatron.config.load import load_config
from qwen_megatron.jobs.kinds.table import PRETRAIN
from qwen_megatron.planning import calibration
from qwen_megatron.planning.machine import Machine, load_machine
from qwen_megatron.planning.search import search
from qwen_megatron.planning.step_time import step_time
from qwen_megatron.platforms import get_platform
from tests.support.ranks import RankPool


def measured_machine() -> Machine:
    """Of the CPU, from small shapes; takes about a second."""
    with (
        mock.patch.object(calibration, "collective_rate", return_value=(1.5, 40.0)),
        mock.patch.object(calibration, "CPU_EDGES", (16, 64)),
        mock.patch.object(calibration, "MOVED_BYTES", 1 << 16),
        mock.patch.object(calibration, "WIDE", (*calibration.WIDE, "model.hidden_size=128")),
    ):
        return calibration.calibrate(get_platform("cpu"), load_machine("h100-80gb"), seconds=0.0)


def test_a_measured_machine_can_be_planned_with(tmp_path: Path) -> None:
    # In a process of its own, as the command is: what earlier tests held at most would count.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        measured = pool.submit(measured_machine).result()
    path = tmp_path / "mine.yaml"
    calibration.write_machine(measured, path, "h100-80gb")
    machine = load_machine(str(path))
    assert (machine.kernels, machine.link_gb_per_second, machine.latency_us) == ("cpu", 1.5, 40.0)
    assert max(machine.product_efficiency.values()) == pytest.approx(1.0)
    assert machine.launch_us == pytest.approx(measured.launch_us, rel=1e-4)
    # No more of times of milliseconds: beside other work the two steps do not fit each other.
    assert machine.launch_us is not None
    assert machine.launch_us > 0
    assert machine.pass_factor > 0
    # A process that has imported torch and trained, without what it trained.
    assert 1e8 < machine.reserved_bytes < 4e9
    found = search(load_config(["recipe:demo"]), 2, machine, PRETRAIN)
    assert found.layouts
    assert {layout.config.parallel.platform for layout in found.layouts} == {"cpu"}


def test_steps_that_are_explained_by_the_file_that_they_made() -> None:
    """What is solved for gives back the seconds that were measured."""
    base = load_machine("h100-80gb")
    flat = {1e3: 1.0, 1e12: 1.0}
    machine = dataclasses.replace(
        base, kernels="cpu", peak_tflops=0.05, memory_gb_per_second=10.0, product_efficiency=flat, launch_us=0.0
    )
    shapes = (calibration.NARROW, calibration.WIDE)
    narrow, wide = (
        (calibration.step_config(get_platform("cpu"), shape), seconds)
        for shape, seconds in zip(shapes, (0.5, 2.0), strict=True)
    )
    solved = calibration.with_steps(machine, narrow, wide)
    for config, seconds in (narrow, wide):
        assert step_time(config, solved).total == pytest.approx(seconds, rel=0.01)


def test_collectives_are_timed_between_two_processes(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(2, timed_rank, folder=str(tmp_path))
    large, small = json.loads((tmp_path / "times.json").read_text(encoding="utf-8"))
    assert 0 < small < large


def timed_rank(folder: str) -> None:
    calibration.time_collectives(int(os.environ["RANK"]), folder)
