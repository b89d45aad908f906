"""`qwen-megatron chat`: a conversation with a model at the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.io.plain_text import printable
from qwen_megatron.cli.chat_input import LineSource, TerminalLines, TimedLines
from qwen_megatron.cli.generate import show
from qwen_megatron.cli.inference_options import add_opening, add_sampling, is_first_rank, opening_of, sampling_of
from qwen_megatron.errors import DataError
from qwen_megatron.jobs.launcher import settle_inference
from qwen_megatron.libraries import first_imports, silence_libraries

if TYPE_CHECKING:
    from qwen_megatron.inference.conversation import Conversation

HELP = """\
/reset         forget what was said
/system TEXT   another system text, from the beginning; without TEXT shows the one that holds
/help          this list
/exit          leave; Ctrl-D does too
//TEXT         say a text that begins with a slash
Ctrl-C         stop the answer, which stays as far as it came; at the prompt: leave"""

EPILOG = f"""commands of a chat:
  {HELP.replace(chr(10), chr(10) + "  ")}

examples:
  qwen-megatron chat exports/first --temperature 0.7 --top-p 0.8
  qwen-megatron chat runs/first --system 'Answer in one word.' < questions.txt
  torchrun --nproc-per-node 2 -m qwen_megatron chat runs/first --pipeline-model-parallel-size 2
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model",
        description="Talks with a model in ChatML; answers come as they are made, and each question goes with all that "
        "was said. Input that is no terminal is read line by line, each a question. Reads a checkpoint of any layout "
        "or a Hugging Face folder; runs in one process, or under torchrun on several, where Ctrl-C ends the chat.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", type=Path, help="a checkpoint, a run's folder or a Hugging Face folder"
    )
    parser.add_argument("--system", metavar="TEXT", help="system text (You are a helpful assistant.)")
    add_sampling(parser, max_new_tokens=512)
    add_opening(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        CheckpointError, DataError, PlatformError: from source and input.
        ConfigError: if an option is wrong.
    """
    settle_inference()
    silence_libraries()
    with first_imports():
        from qwen_megatron.inference.conversation import Conversation
        from qwen_megatron.inference.opening import native_length_of, open_generator
        from qwen_megatron.parallel.objects import is_shared

    sampling, opening = sampling_of(args), opening_of(args)
    with open_generator(args.source, opening) as generator:
        conversation = Conversation(generator, sampling, args.system)
        is_awaited = is_shared() and is_first_rank() and sys.stdin is not None
        lines = TimedLines(sys.stdin.fileno()) if is_awaited else TerminalLines()
        Chat(conversation, lines, native_length_of(args.source, opening)).run()
    return 0


class Chat:
    """Reads questions and prints answers, until the input ends.

    Args:
        conversation: With the model.
        lines: Where questions come from; asked on the first rank only.
        native_length: Tokens beyond which the user is told that the conversation is long.
    """

    def __init__(self, conversation: Conversation, lines: LineSource, native_length: int):
        self.conversation = conversation
        self.lines = lines
        self.native_length = native_length
        self.has_warned = False
        self.commands: dict[str, Callable[[str], None]] = {
            "/reset": self.reset,
            "/system": self.set_system,
            "/help": lambda _: note(HELP),
        }

    def run(self) -> None:
        """Talks. Collective over the ranks of the job.

        Raises:
            KeyboardInterrupt: on several ranks, which cannot stop at the same token.
            DataError: if a line cannot be read, and nobody sits at a terminal to say it otherwise.
        """
        from qwen_megatron.parallel.objects import broadcast, is_shared

        while True:
            # The ids of the next question; none while the user thinks, null at the end.
            question, mine = self.question() if is_first_rank() else ("", None)
            prompt = broadcast(mine, ids_or_none)
            if prompt is None:
                return
            if not prompt:
                continue
            try:
                with contextlib.closing(self.conversation.answer(prompt, question)) as texts:
                    for text in texts:
                        show(text)
            except KeyboardInterrupt:
                if is_shared():
                    raise
                note("\n(stopped)")
            else:
                show("\n")

    def question(self) -> tuple[str, list[int] | None]:
        """The user's next text and the ids that ask for its answer; no ids while there is none, None at the end."""
        try:
            line = self.lines.next()
        except KeyboardInterrupt:
            if not self.lines.is_terminal:
                raise
            line = None
            note("")
        if line is None or line.strip() == "/exit":
            return "", None
        if not line.strip():
            return "", []
        if line.startswith("/") and not line.startswith("//"):
            self.command(line)
            return "", []
        text = line.removeprefix("/")
        try:
            prompt = self.conversation.prompt(text)
        except DataError as error:
            if not self.lines.is_terminal:
                raise
            note(str(error))
            return "", []
        self.warn_of_length(len(prompt))
        return text, prompt

    def command(self, line: str) -> None:
        """Does what a line with a slash asks for."""
        name, _, rest = line.strip().partition(" ")
        command = self.commands.get(name)
        if command is None:
            note(f"{name}: no such command; /help lists them, //TEXT says a text that begins with a slash")
        else:
            command(rest.strip())

    def reset(self, _: str) -> None:
        """Forgets the conversation."""
        self.conversation.reset()
        note("(a new conversation)")

    def set_system(self, text: str) -> None:
        """Begins anew with another system text, or shows the one that holds."""
        from data_tools.chat.chatml import with_system

        if not text:
            note(with_system(self.conversation.messages)[0].content)
            return
        try:
            self.conversation.reset(text)
        except DataError as error:
            note(str(error))
            return
        note("(a new conversation)")

    def warn_of_length(self, length: int) -> None:
        """Tells once that the conversation is longer than what the model was trained on."""
        if length > self.native_length and not self.has_warned:
            self.has_warned = True
            note(
                f"(the conversation has {length} tokens, the model was trained on {self.native_length}: answers may "
                "get worse; /reset begins anew, --extend says how longer texts are read)"
            )


def note(text: str) -> None:
    """Tells the user something that is no answer."""
    print(printable(text), file=sys.stderr, flush=True)


def ids_or_none(value: Any) -> list[int] | None:
    """A parser for `parallel.objects`."""
    from qwen_megatron.parallel.objects import list_of, of_type

    return None if value is None else list_of(of_type(int))(value)
