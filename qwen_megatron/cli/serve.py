"""`qwen-megatron serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.commands.outcome import EXIT_INTERRUPTED, EXIT_OK
from qwen_megatron.cli.inference_options import add_opening, count, is_first_rank, opening_of, positive
from qwen_megatron.errors import ConfigError, PlatformError
from qwen_megatron.jobs.launcher import settle_inference
from qwen_megatron.libraries import first_imports, silence_libraries

if TYPE_CHECKING:
    from qwen_megatron.inference.generator import Generator
    from qwen_megatron.serving.engine import Engine

PORT = 8000
MAX_RUNNING = 32
MAX_WAITING = 64
GRACE_SECONDS = 10

EPILOG = """examples:
  qwen-megatron serve exports/first --precision bf16
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Once", "max_tokens": 9}'
  torchrun --nproc-per-node 2 -m qwen_megatron serve runs/first --port 9000

There is no password: whoever reaches the port can use the model. Beyond this machine, put a proxy in front of it.
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "serve",
        help="answer OpenAI's HTTP interface with a model",
        description="Serves POST /v1/completions and /v1/chat/completions, streamed or whole, GET /v1/models and "
        "/health. Requests join a running batch; what would change an answer and is not supported is refused by name. "
        "Needs the extra serve.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", type=Path, help="a checkpoint, a run's folder or a Hugging Face folder"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=count, default=PORT, metavar="N", help=f"0 for a free one ({PORT})")
    parser.add_argument("--served-model-name", metavar="NAME", help="in requests and answers (name of the folder)")
    parser.add_argument(
        "--max-model-len",
        type=positive,
        metavar="N",
        help="tokens of prompt and answer together (the context the model was trained on)",
    )
    parser.add_argument(
        "--max-running",
        type=positive,
        default=MAX_RUNNING,
        metavar="N",
        help=f"texts generated at once; each may hold keys and values of --max-model-len tokens ({MAX_RUNNING})",
    )
    parser.add_argument(
        "--max-waiting",
        type=count,
        default=MAX_WAITING,
        metavar="N",
        help=f"requests that wait for a place; further ones get status 429 ({MAX_WAITING})",
    )
    parser.add_argument(
        "--grace-seconds",
        type=count,
        default=GRACE_SECONDS,
        metavar="N",
        help=f"after SIGINT or SIGTERM answers may go on so long; a second signal ends them at once ({GRACE_SECONDS})",
    )
    add_opening(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        CheckpointError, DataError, PlatformError: from source and machine.
        ConfigError: if an option is wrong.
    """
    check(args)
    settle_inference()
    silence_libraries()
    with first_imports():
        from qwen_megatron.inference.opening import native_length_of, open_generator

    opening = opening_of(args)
    longest = args.max_model_len or native_length_of(args.source, opening)
    with contextlib.ExitStack() as stack:
        listener = None
        if is_first_rank():
            from qwen_megatron.serving.server import listener_on

            listener = stack.enter_context(listener_on(args.host, args.port))
        generator = stack.enter_context(
            open_generator(args.source, opening, longest=longest, max_rows=args.max_running)
        )
        if listener is None:
            return follow_first(generator)
        return serve_first(args, generator, listener, longest)


def check(args: argparse.Namespace) -> None:
    """Refuses what cannot work before a model is read.

    Raises:
        ConfigError: if an option is wrong.
        PlatformError: if the extra is not installed.
    """
    if args.port > 65535:
        raise ConfigError(f"--port={args.port}: must be at most 65535")
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise PlatformError(f"serve needs {' and '.join(missing)}; in the checkout run: pip install -e '.[serve]'")


def serve_first(args: argparse.Namespace, generator: Generator, listener: Any, longest: int) -> int:
    """Serves on the first rank; returns the exit status."""
    from qwen_megatron.serving.app import Terms, build_app
    from qwen_megatron.serving.engine import Engine
    from qwen_megatron.serving.server import hosts_of, serve

    engine = Engine(generator, args.max_waiting)
    name = args.served_model_name or args.source.resolve().name
    app = build_app(engine, Terms(name=name, max_model_len=longest, hosts=hosts_of(args.host)))

    def announce(address: str) -> None:
        print(f"serving {name} at {address} (texts of up to {longest} tokens); Ctrl-C ends", flush=True)

    with stopped_by_signals(engine, args.grace_seconds) as signals:
        serve(engine, app, listener, announce)
    return EXIT_INTERRUPTED if signal.SIGINT in signals else EXIT_OK


@contextlib.contextmanager
def stopped_by_signals(engine: Engine, grace_seconds: int) -> Iterator[list[int]]:
    """Has SIGINT and SIGTERM stop the engine; gives those that came."""
    came: list[int] = []

    def handle(number: int, _: Any) -> None:
        engine.stop(0.0 if came else grace_seconds)
        came.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            print("qwen-megatron: stopped", file=sys.stderr, flush=True)


def follow_first(generator: Generator) -> int:
    """Works with the first rank until it ends; signals are for that one to act on."""
    from qwen_megatron.inference.running_batch import RunningBatch
    from qwen_megatron.serving.plan import follow

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    follow(RunningBatch(generator.staged, generator.num_tokens, generator.max_rows))
    return EXIT_OK
