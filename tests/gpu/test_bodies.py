"""The tests of a GPU, with the CPU in its place: what they do and compare is right, whatever a GPU answers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import commands, count_waits
from tests.gpu import test_training as bodies
from tests.support.ranks import RankPool

# What a GPU alone has, and what stands in its place.
INSTEAD = {"parallel.platform=cuda": "parallel.platform=cpu", commands.ENGINE: commands.TORCH}
LEFT_OUT = ("training.fp8=", "parallel.cuda_graph_impl=")
STEPS = 6


def main_job(arguments: list[str]) -> str:
    """The output of `qwen-megatron ...` on a rank."""
    from qwen_megatron.cli.main import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(arguments) == 0, output.getvalue()
    return output.getvalue()


def clear() -> None:
    """Forgets the runs that tests have made, wherever."""
    for kept in (commands.corpus, commands.trained):
        kept.cache_clear()


@pytest.fixture(scope="module")
def cpu_as_gpu(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands run on the CPU, on the pool of ranks; what tests share is shared here alone."""

    def command(*arguments: str, processes: int = 1) -> str:
        translated = [INSTEAD.get(one, one) for one in arguments if not one.startswith(LEFT_OUT)]
        output: str = ranks.run(processes, main_job, arguments=translated)[0]
        return output

    folder = tmp_path_factory.mktemp("cpu-as-gpu")
    with pytest.MonkeyPatch.context() as patch:
        clear()
        for module in (commands, bodies):
            patch.setattr(module, "command", command)
            patch.setattr(module, "STEPS", STEPS)
        patch.setattr(commands, "folder", lambda: folder)
        yield
    clear()


Body = Callable[..., Any]


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        (bodies.test_fp32_losses_are_the_cpus, {"kernels": commands.ENGINE}),
        (bodies.test_a_resume_is_bitwise, {"kernels": commands.TORCH}),
        (bodies.test_an_export_is_the_same_model, {"kernels": commands.TORCH}),
        (bodies.test_ranks_on_one_gpu_give_the_losses_of_one, {"kernels": commands.ENGINE, "layout": "PP2"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_body_holds_on_the_cpu(cpu_as_gpu: None, body: Body, arguments: dict[str, str]) -> None:
    body(**arguments)


def test_the_step_whose_waits_are_counted_runs() -> None:
    assert count_waits.waits_of_a_step("cpu", "training.precision=fp32", "data.mask_documents=true") == {}


def test_tests_of_a_gpu_are_marked_so() -> None:
    for module in Path(commands.__file__).parent.glob("test_*.py"):
        text = module.read_text(encoding="utf-8")
        assert ("\npytestmark = pytest.mark.gpu\n" in text) == (module.name != Path(__file__).name)
