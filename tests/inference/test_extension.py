"""Names and sizes of what is done beyond the native length."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from qwen_megatron.errors import ConfigError
from qwen_megatron.inference.extension import CHOICES, Extension, extend, parse_extension, parse_windows
from qwen_megatron.inference.loading import logits
from qwen_megatron.parallel.groups import Groups
from tests.inference.test_generator import tiny_model
from tests.support.trainables import groups_of


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    with groups_of() as groups:
        yield groups


def test_names() -> None:
    assert [parse_extension(name) for name in CHOICES] == [
        None,
        Extension(),
        Extension(ntk="fixed"),
        Extension(ntk="dynamic"),
        Extension(logn=True),
        Extension(ntk="dynamic", logn=True),
        Extension(ntk="dynamic", logn=True, window=True),
    ]
    for wrong in ("", "yarn", "ntk+dynamic-ntk", "logn+logn", "none+logn", "dynamic-ntk+"):
        with pytest.raises(ConfigError, match="must be one of checkpoint, none, ntk"):
            parse_extension(wrong)


def test_windows() -> None:
    assert parse_windows("checkpoint", 4) is None
    assert parse_windows("none", 3) == (0, 0, 0)
    assert parse_windows("128", 2) == (128, 128)
    assert parse_windows("64:128", 5) == (64, 80, 96, 112, 128)
    assert parse_windows("64:128", 1) == (64,)
    assert parse_windows("8,0,16", 3) == (8, 0, 16)
    for wrong, rule in (
        ("1,2", "has 2 numbers, the model 3 layers"),
        ("128:64", "the first above 0 and no larger"),
        ("1:2:3", "must be two numbers"),
        ("-1", "must be checkpoint, none, a number of tokens"),
        ("", "must be checkpoint, none, a number of tokens"),
    ):
        with pytest.raises(ConfigError, match=rule):
            parse_windows(wrong, 3)


def test_an_extension_changes_long_inputs_alone_and_can_be_taken_back(groups: Groups) -> None:
    model = tiny_model(groups, seq_length=8, use_dynamic_ntk=True)
    short, long = torch.arange(8)[None], torch.arange(30)[None]
    configured = logits(model, short), logits(model, long)
    plain = logits(model, long[:, :8])
    assert torch.equal(plain, configured[0])
    seen = [configured[1]]
    for name in ("none", "logn", "dynamic-ntk+logn", "ntk"):
        extend(model, parse_extension(name), longest=30)
        seen.append(logits(model, long))
        same = torch.equal(logits(model, short), configured[0])
        assert same == (name != "ntk"), name
    # For the longest input fixed and dynamic NTK are the same.
    torch.testing.assert_close(seen.pop(), configured[1], rtol=0, atol=1e-5)
    assert all((one - other).abs().max() > 1e-3 for i, one in enumerate(seen) for other in seen[:i])
    extend(model, parse_extension("dynamic-ntk+logn+window"), longest=30, native_length=16)
    assert (logits(model, long) - seen[-1]).abs().max() > 1e-3
    extend(model, None, longest=30)
    assert torch.equal(logits(model, long), configured[1])


def test_training_knows_nothing_of_it(groups: Groups) -> None:
    model = tiny_model(groups, seq_length=8)
    tokens = torch.arange(30)[None]
    model.train()
    with torch.no_grad():
        before = model(tokens, None)
        extend(model, parse_extension("ntk+logn+window"), longest=30)
        assert torch.equal(model(tokens, None), before)
