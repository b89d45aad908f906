"""``qwen-data run``."""

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.commands.arguments import add_workers_argument
from data_tools.errors import RefusedError
from data_tools.io.plain_text import printable

if TYPE_CHECKING:
    from data_tools.engine.executor import Executor
    from data_tools.engine.task import Manifest
    from data_tools.pipeline.pipeline_file import Pipeline
    from data_tools.pipeline.run import RunSummary

_EXAMPLES = """examples:
  qwen-data run pipeline.yaml --workers 8
  qwen-data run pipeline.yaml --max-bad 0.1%
  qwen-data run pipeline.yaml --keep-documents last
  qwen-data run pipeline.yaml --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
  qwen-data run pipeline.yaml --ray-address auto

Run again after an interruption or a change: finished parts are skipped. docs/data-engine.md lists the stages.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "run",
        help="a whole pipeline, from files to corpora",
        description="Runs the stages of a pipeline file; what is finished for the same inputs and options is skipped.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", type=Path, metavar="PIPELINE.yaml", help="the pipeline file")
    add_execution_arguments(parser)
    parser.set_defaults(run=run)


def add_execution_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the tasks run and how many bad records are too many."""
    add_workers_argument(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--shard", type=_share, metavar="I/N", help="do task numbers I, I + N, ... and wait for the other N - 1 jobs"
    )
    where.add_argument(
        "--ray-address", metavar="ADDRESS", help="run on Ray: auto, host:port, or local to start it here"
    )
    parser.add_argument(
        "--max-bad",
        metavar="LIMIT",
        help="exit with status 1 if more records cannot be read: a number (100) or a share (0.1%%); default: the "
        "pipeline file's max_bad, or none",
    )
    parser.add_argument(
        "--keep-documents",
        choices=("all", "last"),
        help="last: to save disk, the documents of a stage are removed when the next one is finished, but for the last "
        "before tokenization; counts, lists and dropped documents stay. all: those removed earlier are made again. "
        "Default: the pipeline file's keep_documents, or nothing is removed and nothing made again that no stage needs",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the pipeline and prints its counts; fails if a stream breaks or --max-bad is exceeded."""
    from data_tools.pipeline.pipeline_file import load_pipeline

    started = time.monotonic()
    return execute(options, load_pipeline(options.pipeline), [], started)


def execute(options: argparse.Namespace, pipeline: "Pipeline", parts: "Sequence[Manifest]", started: float) -> int:
    """Runs ``pipeline`` as the arguments of `add_execution_arguments` say, and prints its counts.

    Args:
        parts: of another run, that the pipeline begins with.
        started: `time.monotonic()` when the command began.
    Raises:
        DataError: as `run_pipeline`, a stream breaks, or more than max_bad records cannot be read.
    """
    from data_tools.commands.rejections import RejectionLimit, check_rejected
    from data_tools.engine.runner import Share
    from data_tools.pipeline.run import run_pipeline

    text = options.max_bad if options.max_bad is not None else pipeline.max_bad
    try:
        given_as = "--max-bad " if options.max_bad is not None else "max_bad="
        limit = RejectionLimit(text, given_as) if text is not None else None
    except ValueError as error:
        raise RefusedError(f"max_bad={text!r} is not a limit; write a number (100) or a share (0.1%)") from error
    if options.keep_documents is not None:
        pipeline = dataclasses.replace(pipeline, keep_documents=options.keep_documents)
    executor = _executor(options)
    try:
        summary = run_pipeline(pipeline, executor, Share(*options.shard) if options.shard else None, parts)
    finally:
        executor.close()
    _print(summary, time.monotonic() - started)
    _print_places(pipeline, summary)
    _warn(summary)
    bad = summary.unreadable
    check_rejected(bad, summary.num_records - sum(bad.values()), limit, summary.quarantine, "the output")
    return 0


def _executor(options: argparse.Namespace) -> "Executor":
    from data_tools.engine.executor import InProcessExecutor, ProcessExecutor

    if options.ray_address is not None:
        from data_tools.engine.ray_executor import RayExecutor

        return RayExecutor(options.ray_address)
    return InProcessExecutor() if options.workers == 1 else ProcessExecutor(options.workers)


def _print(summary: "RunSummary", seconds: float) -> None:
    for stage in summary.stages:
        took = f"{summary.timings[stage['name']]['seconds']:>9,.1f} s"
        line = f"{stage['name']:<16} {stage['records_in']:>12,} -> {stage['records_out']:>12,} {took}"
        print(printable(line))
        for reason, count in sorted(stage["rejected"].items(), key=lambda item: (-item[1], item[0])):
            print(printable(f"  {reason:<30} {-count:>13,}"))
        if stage["copied"]:
            print(f"  {'copies':<30} {stage['copied']:>+13,}")
        for name, share in stage["shares"].items():
            epochs, tokens = stage["epochs"][name], stage["tokens"][name]
            row = f"  {printable(name):<14} {share:>12.2%} of training: "
            print(f"{row}{epochs * tokens:,.0f} tokens, {epochs:.2f} epochs")
    print(f"{summary.tasks_done:,} tasks done, {summary.tasks_skipped:,} skipped, {seconds:,.1f} s")
    if summary.removed_bytes:
        print(f"documents of finished stages removed: {summary.removed_bytes / 1e6:,.1f} MB (keep_documents: last)")


def _print_places(pipeline: "Pipeline", summary: "RunSummary") -> None:
    """Where everything is, and what to type next."""
    from data_tools.stages.mixture import MIXTURE_FILE

    last = summary.stages[-1]
    places = {}
    if any(stage["kind"] == "tokenize" for stage in summary.stages):
        places["corpora"] = ", ".join(str(pipeline.output / "corpora" / name) for name in last["tokens"])
    if last["kind"] == "mixture":
        places["mixture"] = str(pipeline.output / MIXTURE_FILE)
        places["train"] = f"qwen-megatron pretrain SETTINGS.yaml {pipeline.output / MIXTURE_FILE}"
    places["report"] = f"qwen-data report {pipeline.output}"
    for name, place in places.items():
        print(printable(f"{name + ':':<9} {place}"))


def _warn(summary: "RunSummary") -> None:
    from data_tools.pipeline.heavy_rules import heavy_rules

    for stage in summary.stages:
        for rule in heavy_rules(stage):
            print(printable(f"qwen-data: warning: {rule}"), file=sys.stderr)
    if num_bad := sum(summary.unreadable.values()):
        print(f"qwen-data: {num_bad:,} records cannot be read: {summary.quarantine}", file=sys.stderr)


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard; write I/N with I from 0 to N - 1, as 0/4")
    return int(match[1]), int(match[2])
