"""``qwen-data stage KIND``: one stage of a pipeline as a command of its own, made from the table of stages."""

import argparse
import re
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.commands.run import add_execution_arguments, execute

if TYPE_CHECKING:
    from data_tools.pipeline.single_stage import StageOption

_EXAMPLES = """examples:
  qwen-data stage read 'crawl/*.warc.gz' --output work/read read.source=crawl
  qwen-data stage language work/read --output work/language 'keep=[en, zh]'
  qwen-data stage filter work/language --output work/filter rules.c4=null
  qwen-data stage filter pages.jsonl.gz --output work/pages read.text_key=content
  qwen-data stage filter --help

INPUT is a file, folder, pattern or URL of any format that pipelines read, or the output folder of an earlier run, whose
documents are taken as they are. Documents that stay go to DIR/stages/NN-KIND/part-NNNNNN.jsonl.zst; those that do not
go to part-NNNNNN.dropped.jsonl.zst beside them, with the reason. Run again after an interruption or a change: finished
parts are skipped. `qwen-data report DIR` shows the counts.
"""
_ASSIGNMENT = re.compile(r"[a-z_][a-z_0-9.]*=", flags=re.IGNORECASE)
_WIDTH = 100


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "stage",
        help="one stage of a pipeline: read, filter, deduplicate, ...",
        description="Does one stage of a pipeline on files, or on what an earlier run left.",
        usage="qwen-data stage KIND INPUT... --output DIR [KEY=VALUE ...] [--workers N]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=_Help, nargs=0, help="show this, the kinds and their options, and exit")
    parser.add_argument("kind", metavar="KIND", help="which stage")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="INPUT | KEY=VALUE",
        help="inputs (write ./a=b for a file of such a name), and options of the stage, as in a pipeline file: dotted "
        "keys nest, values are YAML; read.KEY=VALUE says how files are read",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder everything goes to")
    add_execution_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


class _Help(argparse.Action):
    """The help, with options of the kind that is named before it, or of all; the table of stages is imported now."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *unused: object) -> None:
        from data_tools.pipeline.single_stage import READ, data_set_options, stage_options
        from data_tools.stages.registry import STAGES

        kinds = [namespace.kind] if namespace.kind in STAGES else list(STAGES)
        lines = [parser.format_help(), "kinds and their options (defaults):"]
        for kind in kinds:
            lines.append(f"\n{kind}")
            lines += map(_line, stage_options(kind) if kind != READ else ())
        lines += ["\nread.KEY, of every kind, if INPUT is files", *map(_line, data_set_options())]
        print("\n".join(lines))
        parser.exit()


def _line(option: "StageOption") -> str:
    head = f"  {option.key}" + (f" ({option.default})" if option.default else "")
    meaning = textwrap.wrap(option.meaning, _WIDTH - 6)
    return "\n".join([head, *(f"      {part}" for part in meaning)])


def run(options: argparse.Namespace) -> int:
    """Does the stage and prints its counts; fails if a stream breaks or --max-bad is exceeded."""
    from data_tools.pipeline.single_stage import single_stage
    from data_tools.settings.nodes import assembled, parse_override
    from data_tools.settings.problems import Problems
    from data_tools.stages.registry import STAGES

    started = time.monotonic()
    parser: argparse.ArgumentParser = options.parser
    if options.kind not in STAGES:
        parser.error(f"{options.kind!r} is no stage; choose one of {', '.join(STAGES)}")
    assignments = [one for one in options.arguments if _ASSIGNMENT.match(one)]
    inputs = [one for one in options.arguments if one not in assignments]
    if not inputs:
        parser.error("INPUT is missing: name files or the output folder of an earlier run")
    problems = Problems()
    parsed = [parse_override(one, problems) for one in assignments]
    values = assembled([one for one in parsed if one is not None], problems)
    pipeline, parts = single_stage(options.kind, inputs, Path(options.output), values, problems)
    if problems.messages:
        parser.error("\n".join(f"stage {options.kind}: {message}" for message in problems.messages))
    status = execute(options, pipeline, parts, started)
    folder = pipeline.output / "stages" / f"{len(pipeline.stages):02d}-{options.kind}"
    if any(folder.glob("part-*.jsonl.zst")):
        print(f"documents: {folder}/part-??????.jsonl.zst")
    return status
