"""Supervised fine-tuning: packing changes nothing, nor does the layout; it learns replies that stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.chat.packing import first_fit_decreasing
from data_tools.chat.rendered import Rendered
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.data.sft.batch import packed_batch
from qwen_megatron.model.heads import HeadRequest, Output
from tests.support.dialogues import (
    BYTES,
    END_OF_TURN,
    VOCABULARY,
    documentation,
    documented,
    random_dialogues,
    write_dialogues,
)
from tests.support.ranks import RankPool
from tests.support.trainables import TinyTrainable, groups_of, leave_gradient, tiny_built, tiny_config, weights_of
from tests.support.training import rows, run_job, train_on_ranks

SMALL = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
    f"model.vocab_size={VOCABULARY}",
    "training.precision=fp32",
    "training.seq_length=128",
    "training.micro_batch_size=2",
    "training.global_batch_size=4",
    "optimizer.lr=3e-3",
    "optimizer.lr_warmup_iters=0",
    "data.num_workers=0",
    "logging.tensorboard=false",
)
LAYOUT = (
    "parallel.tensor_model_parallel_size=2",
    "parallel.pipeline_model_parallel_size=2",
)
LENGTH = 48


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dialogues(tmp_path_factory.mktemp("sft") / "dialogues", documentation(64))


@pytest.fixture
def trainable() -> Iterator[TinyTrainable]:
    with groups_of() as groups:
        yield tiny_built(tiny_config(f"training.seq_length={LENGTH}", "model.num_layers=2"), groups)


def gradient(trainable: TinyTrainable, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    for chunk in trainable.model_chunks:
        chunk.zero_grad_buffer()
    shape = BatchShape(micro_batch_size=batch.tokens_bs.size(0), seq_length=batch.tokens_bs.size(1))
    sized = dataclasses.replace(trainable, shape=shape)
    loss = leave_gradient(sized, iter([batch]), num_microbatches=1)
    trainable.trained.prepare_grads()
    return loss, {name: param.main_grad.numpy().copy() for name, param in weights_of(trainable).items()}


def farthest(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest difference, as a share of the largest gradient."""
    largest = max(np.abs(values).max() for values in expected.values())
    return max(np.abs(ours[name] - values).max() for name, values in expected.items()) / largest


def test_packed_dialogues_train_as_separate_ones_do(trainable: TinyTrainable) -> None:
    # A fused causal softmax would ignore the mask of documents.
    assert not trainable.models[0].config.masked_softmax_fusion
    dialogues = random_dialogues(9, 16, 161)
    separate = packed_batch([[dialogue] for dialogue in dialogues], range(9), LENGTH)
    packed = packed_batch([dialogues[:4], dialogues[4:7], dialogues[7:]], range(3), LENGTH)
    assert packed.tokens_bs.numel() * 3 == separate.tokens_bs.numel()
    loss, expected = gradient(trainable, separate)
    found, gradients = gradient(trainable, packed)
    assert found == pytest.approx(loss, rel=1e-6)
    assert farthest(gradients, expected) < 1e-6
    # What packing would do without the mask.
    leaking, wrong = gradient(trainable, dataclasses.replace(packed, document_ids_bs=None))
    assert abs(leaking - loss) > 1e-4 * loss
    assert farthest(wrong, expected) > 1e-3


def test_a_dialogue_knows_nothing_of_its_neighbours(trainable: TinyTrainable) -> None:
    first, second, third = random_dialogues(3, 16, 161, seed=4)
    other = Rendered(tokens=(first.tokens + 17) % 161, targets=~first.targets)

    def losses(*dialogues: Rendered) -> torch.Tensor:
        from qwen_megatron.model.attention_context import AttentionContext

        batch = packed_batch([dialogues], [0], LENGTH)
        request = HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=batch.labels_bs)
        context = AttentionContext(document_ids_bs=batch.document_ids_bs)
        with torch.no_grad():
            found = trainable.models[0].eval()(batch.tokens_bs, batch.position_ids_bs, context, request)
        # Not by its number in the batch: with all of them numbered alike there would be nothing to compare.
        start = len(dialogues[0]) - 1
        return found[0, start : start + len(dialogues[1]) - 1]

    assert torch.equal(losses(first, second, third), losses(other, second, third))
    assert torch.equal(losses(first, second, third), losses(first, second, other))


def test_the_mean_is_that_of_all_targets_of_the_batch(ranks: RankPool, corpus: Path) -> None:
    """However the batch is cut into micro-batches and replicas: rows have few or many targets."""
    settings = [*SMALL, "training.global_batch_size=8", "training.train_iters=2", f"data.blend=[{corpus}]"]
    one = train_on_ranks(ranks, 1, [*settings, "training.micro_batch_size=8"], kind="sft")
    for world_size, overrides in ((1, ()), (1, ("training.micro_batch_size=1",)), (8, LAYOUT)):
        for (_, loss, norm), (_, expected, expected_norm) in zip(
            train_on_ranks(ranks, world_size, [*settings, *overrides], kind="sft"), one, strict=True
        ):
            assert loss == pytest.approx(expected, rel=1e-5), overrides
            assert norm == pytest.approx(expected_norm, rel=1e-5), overrides


def test_the_loss_is_that_of_transformers(corpus: Path, tmp_path: Path, ranks: RankPool) -> None:
    """On one batch: labels of -100 where nothing is learned, one dialogue a row."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(5)
    theirs = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            rope_theta=10000.0,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    ).eval()
    theirs.save_pretrained(tmp_path / "hf")
    count_rows = len(first_fit_decreasing([len(dialogue) - 1 for dialogue in documentation(64)], 256))
    settings = [
        *SMALL,
        "model.use_dynamic_ntk=false",
        "model.use_logn_attn=false",
        "training.train_iters=1",
        f"training.global_batch_size={count_rows}",
    ]
    settings += [f"data.blend=[{corpus}]", f"checkpoint.init_from={tmp_path / 'hf'}", "data.eval_samples=0"]
    settings += [
        f"checkpoint.directory={tmp_path / 'run'}",
        f"training.micro_batch_size={count_rows}",
        "training.seq_length=256",
    ]
    ranks.run(1, run_job, kind="sft", overrides=settings)
    (row,) = (row for row in rows(tmp_path / "run") if "loss" in row)
    total, count = 0.0, 0
    for dialogue in documentation(64):
        tokens = torch.from_numpy(dialogue.tokens).long()[None]
        labels = torch.where(torch.from_numpy(dialogue.targets)[None], tokens, -100)
        with torch.no_grad():
            total += theirs(input_ids=tokens, labels=labels).loss.item() * dialogue.num_targets
        count += dialogue.num_targets
    assert row["loss"] == pytest.approx(total / count, rel=1e-6)


# Of 24 dialogues 130 steps are enough, 95 are not.
@pytest.mark.parametrize(
    ("count", "batch_size", "steps"), [(24, 4, 160), pytest.param(64, 12, 120, marks=pytest.mark.align)]
)
def test_it_learns_replies_that_stop(ranks: RankPool, tmp_path: Path, count: int, batch_size: int, steps: int) -> None:
    """Real dialogues by heart: 64 with `make test-align`, fewer in every run of the tests."""
    corpus = write_dialogues(tmp_path / "dialogues", documentation(count))
    settings = [*SMALL, f"training.train_iters={steps}", "training.seq_length=256", "optimizer.lr=1e-2"]
    settings += [f"training.global_batch_size={batch_size}", f"training.micro_batch_size={batch_size}"]
    settings += ["optimizer.lr_warmup_iters=10"]
    settings += [f"data.blend=[{corpus}]", f"checkpoint.directory={tmp_path}", "optimizer.weight_decay=0.0"]
    ranks.run(1, run_job, kind="sft", overrides=settings)
    replies = ranks.run(1, replies_job, source=tmp_path, count=count)[0]
    expected = [BYTES.encode(said) for _, said in documented(count)]
    assert len(set(map(tuple, expected))) > count / 2
    assert replies == [(tokens, "stop") for tokens in expected]


def replies_job(source: Path, count: int) -> list[tuple[list[int], str]]:
    """What a model answers when asked for each function, without the end of its turn, and why it ended."""
    from data_tools.chat.chatml import Message
    from qwen_megatron.inference.opening import open_generator
    from qwen_megatron.inference.sampling import Sampling

    prompts = [
        [*BYTES.turn(Message(role="user", content=name)).ids, *BYTES.header("assistant")]
        for name, _ in documented(count)
    ]
    with open_generator(source, with_text=False, max_rows=count) as generator:
        completions = generator.generate(
            prompts, Sampling(temperature=0.0, max_new_tokens=40, stop_token_ids=(END_OF_TURN,))
        )
    return [([t for t in c.tokens if t != END_OF_TURN], c.finish_reason) for c in completions]
