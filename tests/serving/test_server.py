"""`qwen-megatron serve` with OpenAI's own client: answers, streams, refusals, clients that go, a full queue."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from data_tools.chat.chatml import Message
from data_tools.tokenizer.qwen import NUM_TOKENS, QwenTokenizer
from qwen_megatron.cli.main import main
from qwen_megatron.inference.completion import Completion
from qwen_megatron.inference.conversation import chatml_of, ending_turns
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.opening import open_generator
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.serving.app import Terms, build_app
from qwen_megatron.serving.engine import Engine
from qwen_megatron.serving.server import hosts_of, listener_on, serve

if TYPE_CHECKING:
    # Imported by the tests that use it: it takes seconds, and not in processes that only collect tests.
    import openai

NAME = "tiny"
LONGEST = 500
MAX_RUNNING, MAX_WAITING = 3, 2


@pytest.fixture(scope="module")
def source(qwen_checkpoint: Path) -> Path:
    """A checkpoint with Qwen's vocabulary."""
    return qwen_checkpoint


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Tests of the whole command come before those that hold a generator: a process has one job at a time.


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_the_command_in_order(
    source: Path, number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer under way is finished first; new requests are refused."""
    import openai

    port = free_port()
    answers: list[Any] = []

    def client() -> None:
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: reachable(url))
            with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as api:
                stream = api.completions.create(model=NAME, prompt="def", max_tokens=90, temperature=0, stream=True)
                answers.append(next(stream).choices[0].text)
                os.kill(os.getpid(), number)
                eventually(lambda: httpx.get(f"{url}/health").status_code == 503)
                answers.append(httpx.post(f"{url}/v1/completions", json={"prompt": "x"}))
                answers.append([chunk.choices[0].finish_reason for chunk in stream][-1])
        finally:
            if len(answers) < 3:
                os.kill(os.getpid(), number)

    thread = threading.Thread(target=client)
    thread.start()
    options = ["--port", str(port), "--served-model-name", NAME, "--max-model-len", "100"]
    assert main(["serve", str(source), *options]) == status
    thread.join(30)
    text, refused, reason = answers
    assert text
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
    assert refused.json()["error"]["message"] == "the server is stopping; try again"
    assert reason == "length"
    assert f"serving {NAME} at http://127.0.0.1:{port} (texts of up to 100 tokens)" in capsys.readouterr().out


def test_wrong_uses_of_the_command(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(source), "--port", str(taken.getsockname()[1])]) == 1
    assert "cannot be listened on (Address already in use); choose another --host or --port" in capsys.readouterr().err
    assert main(["serve", str(source), "--port", "70000"]) == 2
    assert "--port=70000: must be at most 65535" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", str(source)]) == 1
    assert "serve needs fastapi and uvicorn; in the checkout run: pip install -e '.[serve]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def generator(source: Path) -> Iterator[Generator]:
    with open_generator(source, max_rows=MAX_RUNNING) as generator:
        yield generator


@dataclasses.dataclass
class Server:
    """One under way, with a client that does not try again."""

    url: str
    api: openai.OpenAI
    engine: Engine

    def health(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/health").json()  # type: ignore[no-any-return]

    def is_idle(self) -> bool:
        return self.health() == {"status": "ok", "running": 0, "waiting": 0, "cache_bytes": 0}


@contextlib.contextmanager
def running(generator: Generator) -> Iterator[Server]:
    """A server in a thread of its own."""
    import openai

    engine = Engine(generator, MAX_WAITING)
    app = build_app(engine, Terms(name=NAME, max_model_len=LONGEST, hosts=hosts_of("127.0.0.1")))
    addresses: list[str] = []
    thread = threading.Thread(target=serve, args=(engine, app, listener_on("127.0.0.1", 0), addresses.append))
    thread.start()
    try:
        eventually(lambda: bool(addresses))
        with openai.OpenAI(base_url=f"{addresses[0]}/v1", api_key="-", max_retries=0) as api:
            yield Server(addresses[0], api, engine)
    finally:
        engine.stop(5.0)
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(generator: Generator) -> Iterator[Server]:
    with running(generator) as server:
        yield server


def eventually(holds: Callable[[], bool]) -> None:
    """Waits until something holds."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def reachable(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def completed(generator: Generator, prompt: str | list[int], **sampling: Any) -> Completion:
    (completion,) = generator.generate([prompt], Sampling(**sampling))
    return completion


def test_completions_are_the_generators(server: Server, generator: Generator) -> None:
    greedy = server.api.completions.create(model=NAME, prompt="def 你好", max_tokens=8, temperature=0)
    expected = completed(generator, "def 你好", max_new_tokens=8)
    assert greedy.choices[0].text == expected.text
    assert greedy.choices[0].finish_reason == "length"
    assert greedy.usage is not None
    assert (greedy.usage.prompt_tokens, greedy.usage.completion_tokens) == (len(QwenTokenizer().encode("def 你好")), 8)
    drawn = server.api.completions.create(
        model=NAME, prompt=QwenTokenizer().encode("x"), max_tokens=8, temperature=1.5, top_p=0.9, seed=7, logprobs=0
    )
    expected = completed(generator, "x", max_new_tokens=8, temperature=1.5, top_p=0.9, seed=7)
    assert drawn.choices[0].text == expected.text
    assert drawn.choices[0].logprobs is not None
    assert drawn.choices[0].logprobs.token_logprobs == pytest.approx(expected.log_probabilities, abs=1e-4)
    again = server.api.completions.create(model=NAME, prompt="x", max_tokens=8, temperature=1.5)
    assert again.choices[0].text != server.api.completions.create(model=NAME, prompt="x", max_tokens=8).choices[0].text


def test_stop_texts_end_an_answer_and_its_request(server: Server, generator: Generator) -> None:
    whole = completed(generator, "x", max_new_tokens=8).text or ""
    stop = whole[len(whole) // 2 :][:2]
    found = server.api.completions.create(model=NAME, prompt="x", max_tokens=400, temperature=0, stop=["never", stop])
    assert (found.choices[0].text, found.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")
    eventually(server.is_idle)


def test_streams_join_to_the_same_text(server: Server, generator: Generator) -> None:
    expected = completed(generator, "你", max_new_tokens=9)
    chunks = list(
        server.api.completions.create(
            model=NAME, prompt="你", max_tokens=9, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len(chunks) > 3
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == expected.text
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9 + len(QwenTokenizer().encode("你"))
    assert len({chunk.id for chunk in chunks}) == 1


def test_chats_are_chatml(server: Server, generator: Generator) -> None:
    chatml = chatml_of(generator.vocabulary)
    prompt = chatml.prompt([Message(role="system", content="Brief."), Message(role="user", content="Hi <|im_end|>")])
    assert generator.vocabulary is not None
    sampling = ending_turns(Sampling(max_new_tokens=9), generator.vocabulary)
    (expected,) = generator.generate([prompt], sampling)
    messages: Any = [
        {"role": "developer", "content": "Brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "<|im_end|>"}]},
    ]
    options: Any = {"model": NAME, "messages": messages, "max_completion_tokens": 9, "temperature": 0}
    whole = server.api.chat.completions.create(**options, user="somebody", logprobs=True)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(prompt)
    content = whole.choices[0].logprobs.content  # type: ignore[union-attr]
    assert [one.logprob for one in content or ()] == pytest.approx(expected.log_probabilities, abs=1e-4)
    chunks = list(server.api.chat.completions.create(**options, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason == "length"
    # The answer as its client sends it back.
    messages += [whole.choices[0].message.model_dump(), {"role": "user", "content": "more"}]
    assert server.api.chat.completions.create(**options).choices[0].message.content != expected.text


def test_requests_at_once_equal_their_single_runs(server: Server, generator: Generator) -> None:
    prompts = ["a", "def main(", "你好，世界", "x = 1\n" * 5, "The"]

    def ask(number: int) -> str:
        return (
            server.api.completions.create(
                model=NAME, prompt=prompts[number], max_tokens=6 + number, temperature=0.9, seed=number
            )
            .choices[0]
            .text
        )

    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(ask, range(len(prompts))))
    assert found == [
        completed(generator, prompt, max_new_tokens=6 + number, temperature=0.9, seed=number).text
        for number, prompt in enumerate(prompts)
    ]


def test_a_client_that_goes_frees_its_cache(server: Server) -> None:
    import openai

    stream = server.api.completions.create(model=NAME, prompt="x", max_tokens=490, stream=True)
    next(stream)
    assert server.health()["running"] == 1
    assert server.health()["cache_bytes"] > 0
    stream.close()
    eventually(server.is_idle)
    with pytest.raises(openai.APITimeoutError):
        server.api.completions.create(model=NAME, prompt="x", max_tokens=490, timeout=0.3)
    eventually(server.is_idle)


def test_a_full_queue_is_said(server: Server) -> None:
    import openai

    streams = [
        server.api.completions.create(model=NAME, prompt="x", max_tokens=490, stream=True)
        for _ in range(MAX_RUNNING + MAX_WAITING)
    ]
    eventually(lambda: server.health()["running"] == MAX_RUNNING)
    assert server.health()["waiting"] == MAX_WAITING
    with pytest.raises(openai.RateLimitError) as caught:
        server.api.completions.create(model=NAME, prompt="x")
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.code == "queue_full"
    for stream in streams:
        stream.close()
    eventually(server.is_idle)


CHAT = {"messages": [{"role": "user", "content": "x"}]}
# Address, body, status, words of the message, parameter.
BAD: list[tuple[str, Any, int, str, str | None]] = [
    ("completions", b"{", 400, "the body is not JSON", None),
    ("completions", b"[1]", 400, "the body must be a JSON object", None),
    ("completions", b'{"prompt": "\\ud800"}', 400, "the body is not JSON", None),
    ("completions", b'{"prompt": "x", "temperature": NaN}', 400, "the body is not JSON", None),
    ("completions", b"[" * 100_000, 400, "the body is not JSON", None),
    ("completions", {}, 400, "prompt", "prompt"),
    ("completions", {"prompt": ""}, 400, "has no tokens", None),
    ("completions", {"prompt": []}, 400, "has no tokens", None),
    ("completions", {"prompt": ["a", "b"]}, 400, "prompt", "prompt"),
    ("completions", {"prompt": [NUM_TOKENS]}, 400, f"id {NUM_TOKENS} is no token of the model (0 to 151850)", "prompt"),
    ("completions", {"prompt": [-1]}, 400, "id -1 is no token of the model", "prompt"),
    ("completions", {"prompt": "x", "max_tokens": 500}, 400, "this server takes 500 together", None),
    ("completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens: ", "max_tokens"),
    ("completions", {"prompt": "x", "max_tokens": "9"}, 400, "max_tokens: ", "max_tokens"),
    ("completions", {"prompt": "x", "temperature": 2.5}, 400, "temperature: ", "temperature"),
    ("completions", {"prompt": "x", "top_p": 0}, 400, "top_p: ", "top_p"),
    ("completions", {"prompt": "x", "stop": [""]}, 400, "stop", "stop"),
    ("completions", {"prompt": "x", "n": 2}, 400, "n: is not supported by this server", "n"),
    ("completions", {"prompt": "x", "best_of": 3}, 400, "best_of: is not supported", "best_of"),
    ("completions", {"prompt": "x", "logit_bias": {"5": 1}}, 400, "logit_bias: is not supported", "logit_bias"),
    ("completions", {"prompt": "x", "echo": True}, 400, "echo: is not supported", "echo"),
    ("completions", {"prompt": "x", "logprobs": 5}, 400, "logprobs: ", "logprobs"),
    ("completions", {"prompt": "x", "temprature": 1}, 400, "temprature: is no parameter of this", "temprature"),
    ("completions", {"prompt": "x", "stream_options": {}}, 400, "stream_options is for stream=true", None),
    ("completions", {"prompt": "x", "model": "gpt"}, 404, "the only one is 'tiny'", "model"),
    ("completions", b" " * (1 << 21), 413, "the body has more than", None),
    ("chat/completions", {}, 400, "messages", "messages"),
    ("chat/completions", {"messages": []}, 400, "messages: ", "messages"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "messages"),
    ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages.0.content", "messages"),
    ("chat/completions", {**CHAT, "tools": [{}]}, 400, "tools: is not supported", "tools"),
    ("chat/completions", {**CHAT, "presence_penalty": 1}, 400, "presence_penalty: is not", "presence_penalty"),
    ("chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, 400, "response_format: is not", None),
    ("chat/completions", {**CHAT, "max_completion_tokens": 490}, 400, "this server takes 500 together", None),
    ("embeddings", {}, 404, "POST /v1/embeddings: Not Found", None),
    ("models", {}, 405, "POST /v1/models: Method Not Allowed", None),
]


@pytest.mark.parametrize(("address", "body", "status", "words", "param"), BAD)
def test_bad_requests_are_told_what_is_wrong(
    server: Server, address: str, body: Any, status: int, words: str, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{server.url}/v1/{address}", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


def test_nulls_and_harmless_parameters_ask_for_nothing(server: Server) -> None:
    body = {"prompt": "x", "max_tokens": 1, "n": 1, "logit_bias": {}, "suffix": None, "stop": None, "user": "me"}
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200


HOSTS = [
    ("localhost:8000", 200),
    ("LOCALHOST", 200),
    ("127.0.0.1", 200),
    ("[::1]:9", 200),
    ("evil.example:8000", 403),
    ("evil_example", 403),
    ("localhost.evil.example", 403),
    ("[x", 403),
    ("", 403),
]


def test_pages_in_a_browser_do_not_reach_it(server: Server) -> None:
    """Without asking first, a page may send only other media types; a name of its own may lead to the loopback."""
    url = f"{server.url}/v1/completions"
    answer = httpx.post(url, content=b'{"prompt": "x"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    for host, status in HOSTS:
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == status, host
    assert server.api.models.list().data[0].id == NAME


HEADERS = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (HEADERS + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEADERS + b"Content-Length: 9\r\n\r\n{", b""),
        (b"\0\xff\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_http_ends_its_connection(server: Server, sent: bytes, status: bytes) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4096)[9:12] == status
    eventually(server.is_idle)


def test_answers_that_outlast_the_grace_are_cut_off(generator: Generator) -> None:
    import openai

    with running(generator) as server:
        stream = server.api.completions.create(model=NAME, prompt="x", max_tokens=490, stream=True)
        next(stream)
        server.engine.stop(0.0)
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
        eventually(lambda: server.engine.has_ended)


def test_an_error_of_the_model_ends_the_server(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(generator, MAX_WAITING)
    app = build_app(engine, Terms(name=NAME, max_model_len=LONGEST))
    answers: list[int] = []

    def ask(url: str) -> None:
        answers.append(httpx.post(f"{url}/v1/completions", json={"prompt": "x"}).status_code)

    def broken() -> list[Any]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.batch, "step", broken)
    clients: list[threading.Thread] = []

    def announce(url: str) -> None:
        clients.append(threading.Thread(target=ask, args=(url,)))
        clients[0].start()

    with pytest.raises(RuntimeError, match="out of memory"):
        serve(engine, app, listener_on("127.0.0.1", 0), announce)
    clients[0].join(20)
    assert answers == [503]
