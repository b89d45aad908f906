"""`qwen-megatron evaluate`: benchmarks, from task files or lm-evaluation-harness, beside the paper's numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qwen_megatron.cli.inference_options import add_opening, count, is_first_rank, opening_of, positive
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.launcher import settle_inference
from qwen_megatron.libraries import first_imports, silence_libraries

EPILOG = """examples:
  qwen-megatron evaluate --list
  qwen-megatron evaluate exports/first --tasks mmlu,gsm8k --data benchmarks --output results.json
  qwen-megatron evaluate runs/first --tasks humaneval,mbpp --data benchmarks --allow-code-execution
  qwen-megatron evaluate runs/chat --tasks gsm8k --data benchmarks --chat
  torchrun --nproc-per-node 4 -m qwen_megatron evaluate runs/first --tasks lm-eval:hellaswag --limit 100
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model on benchmarks",
        description="Scores a model on benchmarks: task files, whose questions are read from local JSON Lines, and "
        "tasks of lm-evaluation-harness. Reads a checkpoint of any layout or a Hugging Face folder; runs in one "
        "process, or under torchrun on several. Prints a table beside the paper's numbers of the same form and shots.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", nargs="?", metavar="SOURCE", type=Path, help="a checkpoint, a run's folder or a Hugging Face folder"
    )
    parser.add_argument("--list", action="store_true", help="list the task files and the data they read, and end")
    parser.add_argument(
        "--tasks",
        type=names,
        default=[],
        metavar="NAMES",
        help="with commas between: names of task files, paths of task files of your own (.yaml), lm-eval:NAME",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the questions of task files are")
    parser.add_argument("--chat", action="store_true", help="ask in ChatML, without examples")
    parser.add_argument("--shots", type=count, metavar="N", help="examples before a question (as the task file says)")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="questions of a task at most, of each of its groups (all)"
    )
    parser.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help="tokens of prompt and completion; longer prompts lose their beginning (the model's native length)",
    )
    parser.add_argument("--max-rows", type=positive, default=32, metavar="N", help="texts generated at once (32)")
    parser.add_argument("--output", type=Path, metavar="RESULTS.json", help="write the results as JSON too")
    parser.add_argument("--samples", type=Path, metavar="SAMPLES.jsonl", help="write every question with its answer")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="run code that the model writes, confined (docs/evaluation.md); tasks that need it are refused otherwise",
    )
    parser.add_argument(
        "--code-seconds", type=positive, default=10, metavar="N", help="that a program may run at most (10)"
    )
    parser.add_argument(
        "--lm-eval-include",
        type=Path,
        metavar="FOLDER",
        help="further tasks of lm-eval; code that they name is imported and run",
    )
    add_opening(parser)
    parser.set_defaults(run=run)


def names(text: str) -> list[str]:
    """Names with commas between."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; give NAME,NAME")
    return found


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        CheckpointError, DataError, PlatformError: from source, questions and machine.
        ConfigError: if an option is wrong, or a task is not known or not allowed.
    """
    if args.list:
        print("\n".join(listing()))
        return 0
    check_options(args)
    settle_inference()
    silence_libraries()
    with first_imports():
        from qwen_megatron.evaluation.evaluate import make_plan, report_json, report_table, write_json, write_samples
        from qwen_megatron.evaluation.sandbox import Limits

    plan = make_plan(
        args.tasks,
        args.data,
        include=args.lm_eval_include,
        limit=args.limit,
        shots=args.shots,
        is_chat=args.chat,
        limits=Limits(seconds=args.code_seconds) if args.allow_code_execution else None,
    )
    report = evaluate(args, plan)
    if not is_first_rank():
        return 0
    values = report_json(report, args.source)
    if args.output is not None:
        write_json(args.output, values)
    if args.samples is not None:
        write_samples(args.samples, report)
    print(json.dumps(values, indent=2, ensure_ascii=False) if args.json else "\n".join(report_table(report)))
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuses options that cannot be meant, before anything is read.

    Raises:
        ConfigError: with all problems.
    """
    problems = []
    if args.source is None:
        problems.append("SOURCE: give a checkpoint, a run's folder or a Hugging Face folder")
    if not args.tasks:
        problems.append("--tasks: give at least one name; --list shows them")
    for option, path in (("--data", args.data), ("--lm-eval-include", args.lm_eval_include)):
        if path is not None and not path.is_dir():
            problems.append(f"{option}={path}: is not a folder; name one that is there")
    for option, path in (("--output", args.output), ("--samples", args.samples)):
        if path is not None and not path.parent.is_dir():
            problems.append(f"{option}={path}: {path.parent} is not a folder; make it first")
        elif path is not None and path.is_dir():
            problems.append(f"{option}={path}: is a folder; name a file")
    if problems:
        raise ConfigError(problems)


def evaluate(args: argparse.Namespace, plan: Any) -> Any:
    """Loads the model and asks it everything that is planned."""
    from qwen_megatron.evaluation.evaluate import carry_out
    from qwen_megatron.evaluation.language_model import GeneratorModel, TextModel
    from qwen_megatron.inference.opening import open_generator

    with open_generator(args.source, opening_of(args), longest=args.max_length, max_rows=args.max_rows) as generator:
        model = GeneratorModel(generator)
        length = args.max_length or generator.staged.model.max_sequence_length
        return carry_out(plan, TextModel(model, model.vocabulary, length), judges=is_first_rank())


def listing() -> list[str]:
    """Task files with what they measure and the files and fields they read."""
    from qwen_megatron.evaluation.task_file import find_task, known_tasks

    lines = []
    for name in known_tasks():
        task = find_task(name)
        lines.append(f"{name}: {task.about}")
        shots = f"{task.shots} shots" if task.shots else "no shots"
        lines.append(f"    {'chat' if task.only_chat else shots}; {task.test.file}: {', '.join(task.fields)}")
        if task.examples is not None and task.examples.file != task.test.file:
            more = [*task.fields, *task.example_fields]
            lines.append(f"    examples: {task.examples.file}: {', '.join(more)}")
    return lines
