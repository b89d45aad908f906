"""What clients may ask for: OpenAI's completions and chat completions, as far as they mean the same here.

A parameter that would change the answer and cannot be honoured is refused by name, never dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

import orjson
from annotated_types import Ge, Gt, Interval, Len
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

# Do not change an answer.
IGNORED = (
    "user",
    "metadata",
    "service_tier",
    "store",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
# Would change it; values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
DEFAULT_MAX_TOKENS = 16
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class RefusedError(Exception):
    """A request that gets an error for an answer.

    Attributes:
        status: Of HTTP.
        message: What is wrong and what to change.
        param: The parameter at fault, if it is one.
        code: A word for programs.
        retry_seconds: When to try again, if that helps.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: int | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_seconds = retry_seconds


class StreamOptions(BaseModel):
    """How a stream looks."""

    model_config = STRICT

    include_usage: bool = False
    include_obfuscation: bool = False


class Body(BaseModel):
    """What both kinds of request have."""

    model_config = STRICT

    model: str | None = None
    max_tokens: Annotated[int, Ge(1)] | None = None
    temperature: Annotated[float, Interval(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Ge(0)] = 0
    repetition_penalty: Annotated[float, Gt(0), Interval(le=100)] = 1.0
    seed: Annotated[int, Interval(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[str, Len(1, 1000)] | Annotated[list[Annotated[str, Len(1, 1000)]], Len(0, 16)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def check_stream(self) -> Self:
        """Refuses options of a stream where there is none."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream=true")
        return self

    @property
    def wants_log_probabilities(self) -> bool:
        """Whether the answer gives each token's."""
        raise NotImplementedError

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(Body):
    """Of POST /v1/completions."""

    prompt: str | list[int] | Annotated[list[str], Len(1, 1)]
    # Alternatives of each token, of which there are none here: 0 asks for the chosen tokens' own.
    logprobs: Literal[0] | None = None

    @property
    def wants_log_probabilities(self) -> bool:
        """Whether the answer gives each token's."""
        return self.logprobs is not None


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = STRICT

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A turn."""

    model_config = STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def without_empty(cls, value: Any) -> Any:
        """Drops what clients send back empty of an answer they got, such as `tool_calls`."""
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if name == "content" or item not in (None, [])}

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(Body):
    """Of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Len(1)]
    max_completion_tokens: Annotated[int, Ge(1)] | None = None
    logprobs: bool = False

    @property
    def wants_log_probabilities(self) -> bool:
        """Whether the answer gives each token's."""
        return self.logprobs


AnyBody = TypeVar("AnyBody", bound=Body)


def parse_body(content: bytes, kind: type[AnyBody]) -> AnyBody:
    """A request's body, checked.

    Raises:
        RefusedError: naming what is wrong.
    """
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RefusedError(400, "the body must be a JSON object")
    value = {name: item for name, item in value.items() if item is not None and name not in IGNORED}
    for name in [name for name in value if name in UNSUPPORTED]:
        if value.pop(name) not in UNSUPPORTED[name]:
            raise RefusedError(400, f"{name}: is not supported by this server; leave it out", param=name)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        name = str(problems[0]["loc"][0]) if problems[0]["loc"] else None
        told = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {worded(one)}" for one in problems[:4])
        raise RefusedError(400, told, param=name) from error


def worded(problem: Any) -> str:
    """What is wrong with a value."""
    if problem["type"] == "extra_forbidden":
        return "is no parameter of this server; leave it out"
    return str(problem["msg"])
