"""The HTTP application: requests become requests of the engine, pieces become answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from data_tools.chat.chatml import Message
from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.inference.completion import FinishReason
from qwen_megatron.inference.conversation import chatml_of, ending_turns
from qwen_megatron.inference.progress import Piece
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.inference.vocabulary import Vocabulary
from qwen_megatron.serving.answers import Answer, ChatAnswer, CompletionAnswer, Object, error_object
from qwen_megatron.serving.engine import Engine, QueueFullError, StoppingError
from qwen_megatron.serving.protocol import (
    DEFAULT_MAX_TOKENS,
    AnyBody,
    Body,
    ChatBody,
    CompletionBody,
    RefusedError,
    parse_body,
)

# Bytes of a body: for small models, and for each token of the longest prompt, escaped in JSON.
LEAST_BODY_BYTES = 1 << 20
BODY_BYTES_PER_TOKEN = 64
RETRY_SECONDS = 1
RETRY_STOPPING_SECONDS = 10
# Nobody reads it: the client has gone.
CLIENT_CLOSED = 499
STOPPING = "the server is stopping; try again"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a server offers.

    Attributes:
        name: Of the model, in requests and answers.
        max_model_len: Tokens of prompt and answer together.
        hosts: Names that a client may call the server by; None for any. On the loopback this keeps pages in a browser
            from reaching it through a name of theirs.
    """

    name: str
    max_model_len: int
    hosts: frozenset[str] | None = None

    @property
    def max_body_bytes(self) -> int:
        """Of a request."""
        return LEAST_BODY_BYTES + BODY_BYTES_PER_TOKEN * self.max_model_len


def build_app(engine: Engine, terms: Terms) -> FastAPI:
    """The application of one engine.

    Args:
        engine: Runs in another thread; its generator has a vocabulary.
        terms: What it offers.
    """
    service = Service(engine, terms)
    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(title="qwen-megatron", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models", service.models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/completions", service.completions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/chat/completions", service.chat_completions, methods=["POST"], response_model=None)
    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(HTTPException, not_found)
    app.add_exception_handler(Exception, failed)
    return app


async def refused(_: Request, error: Any) -> Response:
    """The answer to a request that is refused."""
    headers = {} if error.retry_seconds is None else {"Retry-After": str(error.retry_seconds)}
    content = error_object(error.message, status=error.status, param=error.param, code=error.code)
    return JSONResponse(content, status_code=error.status, headers=headers)


async def not_found(request: Request, error: Any) -> Response:
    """The answer where there is no such address or method."""
    message = f"{request.method} {request.url.path}: {error.detail}"
    content = error_object(message, status=error.status_code)
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


async def failed(_: Request, error: Any) -> Response:
    """The answer to a request that found a fault of ours, which the server's log tells."""
    return JSONResponse(error_object("the server failed; its log says how", status=500), status_code=500)


class Service:
    """The handlers.

    Args:
        engine, terms: As of `build_app`.
    """

    def __init__(self, engine: Engine, terms: Terms):
        assert engine.generator.vocabulary is not None
        self.engine = engine
        self.terms = terms
        self.vocabulary: Vocabulary = engine.generator.vocabulary

    async def health(self, request: Request) -> Response:
        """Whether requests are taken, and how busy the engine is."""
        self.check_host(request)
        load, is_stopping = self.engine.load, self.engine.is_stopping
        content = {
            "status": "stopping" if is_stopping else "ok",
            "running": load.running,
            "waiting": load.waiting,
            "cache_bytes": load.cache_bytes,
        }
        return JSONResponse(content, status_code=503 if is_stopping else 200)

    async def models(self, request: Request) -> Response:
        """The only model."""
        self.check_host(request)
        model = {"id": self.terms.name, "object": "model", "created": 0, "owned_by": "qwen-megatron"}
        return JSONResponse({"object": "list", "data": [{**model, "max_model_len": self.terms.max_model_len}]})

    async def completions(self, request: Request) -> Response:
        """What follows a prompt."""
        body = await self.body_of(request, CompletionBody)
        prompt = await in_thread(self.ids_of, body.prompt)
        sampling = self.sampling(body, len(prompt), body.max_tokens or DEFAULT_MAX_TOKENS)
        return await self.answer(request, body, prompt, sampling, CompletionAnswer)

    async def chat_completions(self, request: Request) -> Response:
        """The assistant's answer to a conversation."""
        body = await self.body_of(request, ChatBody)
        prompt = await in_thread(self.ids_of_chat, body)
        asked = body.max_completion_tokens or body.max_tokens
        sampling = self.sampling(body, len(prompt), asked or max(1, self.terms.max_model_len - len(prompt)))
        return await self.answer(request, body, prompt, ending_turns(sampling, self.vocabulary), ChatAnswer)

    async def body_of(self, request: Request, kind: type[AnyBody]) -> AnyBody:
        """Reads and checks a request.

        Raises:
            RefusedError: naming what is wrong.
        """
        self.check_host(request)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise RefusedError(415, f"Content-Type is {media_type or 'missing'}; must be application/json")
        body = parse_body(await read(request, self.terms.max_body_bytes), kind)
        if body.model not in (None, self.terms.name):
            message = f"model {body.model!r:.100} is not served here; the only one is {self.terms.name!r}"
            raise RefusedError(404, message, param="model", code="model_not_found")
        return body

    def check_host(self, request: Request) -> None:
        """Refuses names that are not the server's.

        Raises:
            RefusedError: if the client called it by another.
        """
        # Not the address that the framework makes of it, which may fall back on the server's own.
        host = request.headers.get("host", "").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self.terms.hosts is not None and name not in self.terms.hosts:
            raise RefusedError(403, f"host {host!r:.100} is not this server, which is bound to the loopback")

    def ids_of(self, prompt: str | Sequence[int] | Sequence[str]) -> list[int]:
        """Token ids of a prompt.

        Raises:
            DataError: if it cannot be encoded.
            RefusedError: if ids are none of the tokenizer's.
        """
        if isinstance(prompt, str):
            return self.vocabulary.encode(prompt)
        ids: list[int] = []
        for part in prompt:
            if isinstance(part, str):
                return self.vocabulary.encode(part)
            if not 0 <= part < self.vocabulary.num_tokens:
                last = self.vocabulary.num_tokens - 1
                raise RefusedError(400, f"prompt: id {part} is no token of the model (0 to {last})", param="prompt")
            ids.append(part)
        return ids

    def ids_of_chat(self, body: ChatBody) -> list[int]:
        """Token ids of a conversation.

        Raises:
            DataError: if the model has no tokens for chats, or a text cannot be encoded.
        """
        roles = {"developer": "system"}
        messages = [Message(role=roles.get(one.role, one.role), content=one.text) for one in body.messages]
        return chatml_of(self.vocabulary).prompt(messages)

    def sampling(self, body: Body, prompt_tokens: int, max_tokens: int) -> Sampling:
        """How an answer goes on.

        Raises:
            RefusedError: if it would get too long.
        """
        longest = self.terms.max_model_len
        if prompt_tokens + max_tokens > longest:
            raise RefusedError(
                400,
                f"the prompt has {prompt_tokens} tokens, with max_tokens={max_tokens} these are "
                f"{prompt_tokens + max_tokens}; this server takes {longest} together",
                code="context_length_exceeded",
            )
        try:
            return Sampling(
                max_new_tokens=max_tokens,
                temperature=float(body.temperature),
                top_k=body.top_k,
                top_p=float(body.top_p),
                repetition_penalty=float(body.repetition_penalty),
                seed=secrets.randbits(63) if body.seed is None else body.seed,
                stop=body.stop_texts,
            )
        except ConfigError as error:
            raise RefusedError(400, "; ".join(error.problems)) from error

    async def answer(
        self, request: Request, body: Body, prompt: list[int], sampling: Sampling, kind: Callable[..., Answer]
    ) -> Response:
        """Asks the engine and answers, whole or as a stream.

        Raises:
            RefusedError: if the engine does not take the request.
        """
        answer = kind(
            model=self.terms.name,
            prompt_tokens=len(prompt),
            vocabulary=self.vocabulary if body.wants_log_probabilities else None,
        )
        pieces = self.submit(prompt, sampling)
        if body.stream:
            return EventStream(answer, pieces, with_usage=body.includes_usage)
        if not await collect(request, answer, pieces):
            return Response(status_code=CLIENT_CLOSED)
        if answer.finish_reason is FinishReason.CANCELLED:
            raise stopping()
        return JSONResponse(answer.whole())

    def submit(self, prompt: list[int], sampling: Sampling) -> Pieces:
        """The pieces of an answer.

        Raises:
            RefusedError: if the engine does not take it.
        """
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Piece]()

        def deliver(piece: Piece) -> None:
            # The loop may have ended before the engine.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(arrived.put_nowait, piece)

        try:
            number = self.engine.submit(prompt, sampling, deliver)
        except DataError as error:
            raise RefusedError(400, str(error)) from error
        except QueueFullError:
            message = f"{self.engine.max_pending} requests run or wait, which is as many as may; try again"
            raise RefusedError(429, message, code="queue_full", retry_seconds=RETRY_SECONDS) from None
        except StoppingError:
            raise stopping() from None
        return Pieces(arrived, functools.partial(self.engine.cancel, number))


async def read(request: Request, max_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        RefusedError: if it is too large, or does not come whole.
    """
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > max_bytes:
                raise RefusedError(413, f"the body has more than {max_bytes} bytes; shorten it")
    except ClientDisconnect:
        raise RefusedError(CLIENT_CLOSED, "the client has gone") from None
    return bytes(content)


class Pieces:
    """What the engine gives for a request, until its end.

    Args:
        arrived: Where the engine puts pieces.
        cancel: Gives up the request; after its end nothing happens.
    """

    def __init__(self, arrived: asyncio.Queue[Piece], cancel: Callable[[], None]):
        self.arrived = arrived
        self.cancel = cancel

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Piece after piece as they come."""
        while True:
            piece = await self.arrived.get()
            yield piece
            if piece.finish_reason is not None:
                return


class EventStream(StreamingResponse):
    """Server-sent events of an answer; when sending ends, in whatever way, the request is given up.

    Args:
        answer: To be filled.
        pieces: Of the engine.
        with_usage: End with the counts of tokens.
    """

    def __init__(self, answer: Answer, pieces: Pieces, *, with_usage: bool):
        super().__init__(
            events(answer, pieces, with_usage=with_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.pieces.cancel()


async def events(answer: Answer, pieces: Pieces, *, with_usage: bool) -> AsyncIterator[bytes]:
    """An answer as server-sent events."""
    for chunk in answer.opening_chunks():
        yield event(chunk)
    async for piece in pieces:
        answer.pieces.append(piece)
        if piece.finish_reason is FinishReason.CANCELLED:
            yield event(error_object(STOPPING, status=503))
            return
        for chunk in answer.chunks_of(piece):
            yield event(chunk)
    if with_usage:
        yield event(answer.usage_chunk())
    yield b"data: [DONE]\n\n"


def event(content: Object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


async def collect(request: Request, answer: Answer, pieces: Pieces) -> bool:
    """Fills an answer; False if the client has gone before its end, which cancels the request."""
    filling = asyncio.create_task(fill(answer, pieces))
    leaving = asyncio.create_task(until_disconnected(request))
    try:
        await asyncio.wait({filling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return filling.done()
    finally:
        filling.cancel()
        leaving.cancel()
        pieces.cancel()


async def fill(answer: Answer, pieces: Pieces) -> None:
    """Adds all pieces."""
    async for piece in pieces:
        answer.pieces.append(piece)


async def until_disconnected(request: Request) -> None:
    """Waits until the client has gone; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def in_thread(function: Callable[[Any], list[int]], argument: Any) -> list[int]:
    """Runs what may take long beside the requests of others.

    Raises:
        RefusedError: for what the client can mend.
    """
    try:
        return await asyncio.to_thread(function, argument)
    except DataError as error:
        raise RefusedError(400, str(error)) from error


def stopping() -> RefusedError:
    """The error while the server ends."""
    return RefusedError(503, STOPPING, code="stopping", retry_seconds=RETRY_STOPPING_SECONDS)
