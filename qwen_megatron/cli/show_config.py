"""`qwen-megatron show-config`: every setting with its value, and what follows from them."""

from __future__ import annotations

import argparse
from typing import Any

from qwen_megatron.cli.settings import add_settings
from qwen_megatron.config.load import split_settings
from qwen_megatron.config.reference import reference
from qwen_megatron.config.summary import as_json, as_yaml
from qwen_megatron.jobs.kinds.table import split_job
from qwen_megatron.jobs.preflight import prepare_config

EPILOG = """examples:
  qwen-megatron show-config examples/qwen-7b.yaml parallel.world_size=64
  qwen-megatron show-config model.preset=qwen-72b parallel.tensor_model_parallel_size=8
  qwen-megatron show-config reward recipe:reward-7b
  qwen-megatron show-config examples/demo.yaml --json
  qwen-megatron show-config --reference > docs/configuration.md
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "show-config",
        help="print the resolved configuration with derived values",
        description="Prints the resolved configuration as YAML: data-parallel size, micro-batches, padded vocabulary, "
        "layers per stage, parameters in all and per rank, tokens per step. Opens neither corpora nor folders. A job "
        "(sft, reward, ppo) is named first; else it is pretrain.",
        usage="%(prog)s [JOB] [CONFIG ...] [SECTION.KEY=VALUE ...] [--json] [--reference]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    parser.add_argument("--reference", action="store_true", help="print the reference of all settings (Markdown)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ConfigError: with all problems.
    """
    if args.reference:
        print(reference(), end="")
        return 0
    kind, settings = split_job(args.settings)
    files, overrides = split_settings(settings)
    config = prepare_config(files, overrides, None, kind=kind)
    print(as_json(config) if args.json else as_yaml(config), end="")
    return 0
