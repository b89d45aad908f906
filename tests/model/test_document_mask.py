"""Documents packed into one sequence do not see each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.inference.loading import single_process
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.builder import QwenModel, build_model, unwrapped
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.parallel.context import take_slices
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=50,
    seq_length=64,
    implementation="torch",
)


@pytest.fixture(scope="module")
def model() -> Iterator[QwenModel]:
    with single_process("cpu") as groups:
        yield unwrapped(build_model(MODEL, groups, precision="fp32", seed=5))


def losses(model: QwenModel, tokens_bs: torch.Tensor, document_ids_bs: torch.Tensor | None) -> torch.Tensor:
    """Loss of each label, [b, s]."""
    positions_bs = torch.arange(tokens_bs.size(1)).expand_as(tokens_bs)
    context = AttentionContext(document_ids_bs=document_ids_bs)
    request = HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=tokens_bs.roll(-1, dims=1))
    return model(tokens_bs, positions_bs, context, request)


def packed(lengths: list[int]) -> torch.Tensor:
    """Document ids [1, s] of documents of these lengths."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


def test_another_document_changes_no_bit(model: QwenModel) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens_bs = torch.randint(0, 50, (1, 40), generator=generator)
    changed_bs = tokens_bs.clone()
    changed_bs[0, :17] = torch.randint(0, 50, (17,), generator=generator)
    ids_bs = packed([17, 20, 3])
    before, after = losses(model, tokens_bs, ids_bs), losses(model, changed_bs, ids_bs)
    # The last label is the first token, rolled over.
    assert torch.equal(before[0, 17:39], after[0, 17:39])
    assert not torch.equal(before[0, :16], after[0, :16])
    unmasked = losses(model, tokens_bs, None), losses(model, changed_bs, None)
    assert not torch.equal(unmasked[0][0, 17:39], unmasked[1][0, 17:39])


def test_gradients_do_not_cross_documents(model: QwenModel) -> None:
    tokens_bs = torch.arange(30)[None] % 50
    ids_bs = packed([10, 20])
    model.zero_grad()
    losses(model, tokens_bs, ids_bs)[0, 10:29].sum().backward()
    gradient = model.embedding.word_embeddings.weight.grad
    # Tokens 0..9 stand in the first document only.
    assert torch.count_nonzero(gradient[:10]) == 0
    assert torch.count_nonzero(gradient[10:29]) > 0


def test_a_masked_document_is_what_it_is_alone(model: QwenModel) -> None:
    tokens_bs = (torch.arange(24)[None] * 7) % 50
    together = losses(model, tokens_bs, packed([9, 15]))
    # Rotary attention sees distances only: the second document's place in the sequence does not matter.
    alone = losses(model, tokens_bs[:, 9:], None)
    torch.testing.assert_close(together[0, 9:23], alone[0, :14], rtol=0, atol=1e-5)


def test_every_row_has_its_own_documents(model: QwenModel) -> None:
    tokens_bs = (torch.arange(24).reshape(2, 12) * 5) % 50
    ids_bs = torch.cat((packed([4, 8]), packed([12])))
    both = losses(model, tokens_bs, ids_bs)
    for row in range(2):
        one = losses(model, tokens_bs[row : row + 1], ids_bs[row : row + 1])
        torch.testing.assert_close(both[row, :11], one[0, :11], rtol=0, atol=1e-6)


@pytest.mark.parametrize("ids_bs", [torch.ones(1, 8, dtype=torch.bool), torch.zeros(1, 7, dtype=torch.int64)])
def test_documents_of_another_batch_are_refused(model: QwenModel, ids_bs: torch.Tensor) -> None:
    tokens_bs = torch.zeros(1, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"document_ids_bs must be int64 \[1, 8\]"):
        model(tokens_bs, tokens_bs, AttentionContext(document_ids_bs=ids_bs))


def split_job(tokens_bs: torch.Tensor, document_ids_bs: torch.Tensor) -> torch.Tensor:
    """Losses of this rank's slices of the sequence, [b, s / 2]."""
    with groups_of(context_size=2) as groups:
        model = unwrapped(build_model(MODEL, groups, precision="fp32", seed=5))
        positions_bs = torch.arange(tokens_bs.size(1)).expand_as(tokens_bs)
        mine_bs, labels_bs = (take_slices(x, 1, groups.cp) for x in (tokens_bs, tokens_bs.roll(-1, dims=1)))
        context = AttentionContext(document_ids_bs=document_ids_bs)
        request = HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=labels_bs)
        return model(mine_bs, take_slices(positions_bs, 1, groups.cp), context, request).detach()


def gathered(parts: list[torch.Tensor]) -> torch.Tensor:
    """[b, s] of the two ranks' slices: 0 and 3 of the first, 1 and 2 of the second."""
    (first, last), (second, third) = (part.chunk(2, dim=1) for part in parts)
    return torch.cat((first, second, third, last), dim=1)


def test_documents_of_a_split_sequence(ranks: RankPool, model: QwenModel) -> None:
    """Context parallelism: the same losses as in one process, and another document changes no bit on any rank."""
    generator = torch.Generator().manual_seed(0)
    tokens_bs = torch.randint(0, 50, (2, 40), generator=generator)
    changed_bs = tokens_bs.clone()
    changed_bs[:, :17] = torch.randint(0, 50, (2, 17), generator=generator)
    # Documents end within slices (of 10) and at their ends.
    ids_bs = torch.cat((packed([17, 13, 10]), packed([17, 23])))
    before, after = (
        gathered(ranks.run(2, split_job, tokens_bs=tokens, document_ids_bs=ids_bs))
        for tokens in (tokens_bs, changed_bs)
    )
    torch.testing.assert_close(before, losses(model, tokens_bs, ids_bs).detach(), rtol=0, atol=1e-5)
    assert torch.equal(before[:, 17:39], after[:, 17:39])
    assert not torch.equal(before[:, :16], after[:, :16])
