"""Bodies of requests: whatever JSON comes, there is a checked body or an error that names what is wrong."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_megatron.serving.protocol import (
    IGNORED,
    UNSUPPORTED,
    Body,
    ChatBody,
    CompletionBody,
    RefusedError,
    parse_body,
)

NAMES = sorted(
    {*CompletionBody.model_fields, *ChatBody.model_fields, *UNSUPPORTED, *IGNORED, "role", "content", "text"}
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)
USUAL = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize("kind", [CompletionBody, ChatBody])
@settings(max_examples=150)
@given(value=st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON, max_size=4) | JSON, is_usual=st.booleans())
def test_any_json_gives_a_body_or_an_error(kind: type[Body], value: object, is_usual: bool) -> None:
    if is_usual and isinstance(value, dict):
        value = {name: content for name, content in USUAL.items() if name in kind.model_fields} | value
    body = parsed(orjson.dumps(value), kind)
    if isinstance(body, RefusedError):
        assert body.status == 400
        assert body.message
        return
    assert body.top_p > 0
    assert all(body.stop_texts)
    assert isinstance(value, dict)
    assert not [name for name in UNSUPPORTED if value.get(name) not in (None, *UNSUPPORTED[name])]


def parsed(content: bytes, kind: type[Body]) -> Body | RefusedError:
    """The body, or why there is none."""
    try:
        return parse_body(content, kind)
    except RefusedError as error:
        return error


def test_every_parameter_stands_in_one_list() -> None:
    known = [*{*CompletionBody.model_fields, *ChatBody.model_fields}, *UNSUPPORTED, *IGNORED]
    assert len(known) == len(set(known))
