"""`qwen-megatron chat` with a scripted user: history, commands, Ctrl-C, pipes; on ranks in test_chat_ranks.py."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_tools.chat.chatml import Message
from data_tools.tokenizer.qwen import QwenTokenizer
from qwen_megatron.cli.chat import Chat
from qwen_megatron.cli.chat_input import TimedLines
from qwen_megatron.cli.main import main
from qwen_megatron.errors import DataError
from qwen_megatron.inference.conversation import Conversation
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.opening import open_generator
from qwen_megatron.inference.sampling import Sampling

# As the released chat models have it.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def source(qwen_folder: Path) -> Path:
    """A Hugging Face folder with Qwen's vocabulary and tokenizer."""
    return qwen_folder


# After the tests of the whole command: a process has one job at a time.
@pytest.fixture(scope="module")
def generator(source: Path) -> Iterator[Generator]:
    with open_generator(source) as generator:
        yield generator


class Script:
    """A user at a terminal: lines, or errors that a key raises."""

    is_terminal = True

    def __init__(self, *lines: str | type[BaseException]):
        self.lines = list(lines)

    def next(self) -> str | None:
        line = self.lines.pop(0) if self.lines else None
        if isinstance(line, type):
            raise line
        return line


def talk(generator: Generator, *lines: str | type[BaseException], system: str | None = None) -> Conversation:
    """A chat of six tokens an answer, from its first line to its end."""
    conversation = Conversation(generator, Sampling(max_new_tokens=6), system)
    script = Script(*lines)
    Chat(conversation, script, 64).run()
    assert not script.lines
    return conversation


def expected(generator: Generator, *messages: tuple[str, str]) -> str:
    """The answer to a conversation, from scratch."""
    conversation = Conversation(generator, Sampling(max_new_tokens=6))
    prompt = conversation.chatml.prompt([Message(role=role, content=content) for role, content in messages])
    (completion,) = generator.generate([prompt], conversation.sampling)
    assert completion.text
    return completion.text


def test_piped_lines_are_questions(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_generator(source) as generator:
        first = expected(generator, ("user", "Hi"))
        second = expected(generator, ("user", "Hi"), ("assistant", first), ("user", "你好"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n\n你好"))
    assert main(["chat", str(source), "--max-new-tokens", "6"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{first}\n{second}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8"))
    assert main(["chat", str(source), "--max-new-tokens", "6"]) == 1
    assert "standard input: is not utf-8" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", str(source)]) == 0


def test_the_history_goes_with_every_question(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(generator, "Hi", "", "你好", "/exit")
    first = expected(generator, ("user", "Hi"))
    second = expected(generator, ("user", "Hi"), ("assistant", first), ("user", "你好"))
    assert [message.content for message in conversation.messages] == ["Hi", first, "你好", second]
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_a_conversation_can_begin_anew(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(generator, "Hi", "/reset", "Hi", "/system Be brief.", "/system", "Hi", "/reset", "Hi", "/exit")
    plain, brief = expected(generator, ("user", "Hi")), expected(generator, ("system", "Be brief."), ("user", "Hi"))
    assert plain != brief
    printed = capsys.readouterr()
    assert printed.out == f"{plain}\n{plain}\n{brief}\n{brief}\n"
    assert "\nBe brief.\n" in printed.err
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant"]
    talk(generator, "Hi", system="Be brief.")
    assert capsys.readouterr().out == f"{brief}\n"


def test_commands_are_told_from_texts(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(generator, "/help", "/rest", "//rest")
    printed = capsys.readouterr().err
    assert "/system TEXT" in printed
    assert "/rest: no such command; /help lists them" in printed
    assert [message.content for message in conversation.messages][:1] == ["/rest"]
    talk(generator, "\ud800", "/system \ud800")
    assert capsys.readouterr().err.count("lone surrogate U+D800") == 2


class Interrupted(io.StringIO):
    """A terminal at which somebody presses Ctrl-C when so many texts have been written."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def write(self, text: str) -> int:
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt
        return super().write(text)


def test_an_interrupt_stops_the_answer_only(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = expected(generator, ("user", "Hi"))
    batches: list[Any] = []
    monkeypatch.setattr("qwen_megatron.inference.generator.RunningBatch", recorded(batches))
    monkeypatch.setattr(sys, "stdout", Interrupted(after=4))
    conversation = talk(generator, "Hi", "again", KeyboardInterrupt)
    question, partial, again, _ = (message.content for message in conversation.messages)
    assert (question, again) == ("Hi", "again")
    assert 0 < len(partial) < len(whole)
    assert whole.startswith(partial)
    assert "(stopped)" in capsys.readouterr().err
    assert [batch() for batch in batches] == [None, None], "nothing holds the caches any more"


def recorded(batches: list[Any]) -> Any:
    """RunningBatch, of whose instances weak references are kept."""
    import weakref

    from qwen_megatron.inference.running_batch import RunningBatch

    def make(*args: Any) -> RunningBatch:
        batch = RunningBatch(*args)
        batches.append(weakref.ref(batch))
        return batch

    return make


def test_models_without_chat_tokens_are_refused(generator: Generator) -> None:
    bare = Generator(generator.staged.model, generator.staged.groups, Letters())
    with pytest.raises(DataError, match=r"chats need the tokens <\|im_start\|> and <\|im_end\|>"):
        Conversation(bare, Sampling())


def test_ids_are_those_of_the_usual_template(source: Path, generator: Generator) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    messages = [("user", "Hi there"), ("assistant", "Hello!\n"), ("user", "你好 12")]
    rows = [{"role": role, "content": content} for role, content in messages]
    ids = tokenizer.apply_chat_template(
        rows, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    chatml = Conversation(generator, Sampling()).chatml
    assert chatml.prompt([Message(role=role, content=content) for role, content in messages]) == ids
    assert QwenTokenizer().decode(ids) == generator.vocabulary.decode(ids)  # type: ignore[union-attr]
    assert Conversation(generator, Sampling()).sampling.stop_token_ids == (151645, 151644, 151643)


def test_long_conversations_are_named_once(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    talk(generator, "one " * 50, "two")
    assert capsys.readouterr().err.count("the model was trained on 64") == 1


def test_lines_are_waited_for_in_turns() -> None:
    reader, writer = os.pipe()
    lines = TimedLines(reader, patience_seconds=0.01)
    assert lines.next() == ""
    os.write(writer, b"Hi\r\nyou\nla")
    assert [lines.next(), lines.next(), lines.next()] == ["Hi", "you", ""]
    os.write(writer, b"st")
    os.close(writer)
    assert [lines.next(), lines.next()] == ["last", None]
    os.close(reader)


class Letters:
    """A stand-in for a tokenizer: one character a token."""

    num_tokens = 150
    end_ids: tuple[int, ...] = ()

    def __init__(self, chat_ids: tuple[int, int] | None = None):
        self.chat_ids = chat_ids

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Any) -> str:
        return "".join(chr(number) for number in ids)
