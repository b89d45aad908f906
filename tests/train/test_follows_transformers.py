"""90 steps of ours and of transformers' Qwen2ForCausalLM: same weights, same batches, same optimizer settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from tests.support.ranks import RankPool
from tests.support.training import pretrain_on_ranks

STEPS = 90
TRAINING = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
    "model.vocab_size=257",
    "model.use_dynamic_ntk=false",
    "model.use_logn_attn=false",
    "training.precision=fp32",
    f"training.train_iters={STEPS}",
    "training.seq_length=64",
    "training.global_batch_size=4",
    "training.micro_batch_size=4",
    "optimizer.lr=1e-3",
    "optimizer.lr_warmup_iters=20",
    "data.num_workers=1",
    "checkpoint.save_interval=1000",
    "logging.tensorboard=false",
)


def transformers_losses(config: ResolvedConfig, folder: Path) -> list[float]:
    """The same training in plain torch: AdamW without decay on norms and biases, exact norm clipping, cosine."""
    from transformers import Qwen2ForCausalLM

    from qwen_megatron.data.pretraining.dataset import open_dataset
    from qwen_megatron.train.schedule import learning_rate

    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_eps,
    )
    dataset = open_dataset(
        config.data.blend,
        seq_length=config.training.seq_length,
        seed=config.training.seed,
        eval_samples=0,
        vocab_size=config.model.vocab_size,
    )
    batch_size = config.training.global_batch_size
    losses = []
    for step in range(1, STEPS + 1):
        numbers = range((step - 1) * batch_size, step * batch_size)
        rows = torch.stack([torch.from_numpy(dataset.tokens(dataset.train_id(number))) for number in numbers])
        logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        norm = torch.stack([p.grad.double().square().sum() for p in model.parameters()]).sum().sqrt().item()
        for parameter in model.parameters():
            parameter.grad.mul_(min(1.0, options.clip_grad / (norm + 1e-6)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_ours_follows_transformers(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(7)
    hf = tmp_path / "hf"
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=257,
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
    )
    model.save_pretrained(hf)
    overrides = [*TRAINING, f"data.blend=[{byte_corpus}]", f"checkpoint.directory={tmp_path / 'run'}"]
    config = resolve(load_config(None, overrides))
    ours = pretrain_on_ranks(
        ranks, 1, byte_corpus, tmp_path / "run", f"checkpoint.init_from={hf}", base=TRAINING, timeout_seconds=300
    )
    theirs = transformers_losses(config, hf)
    # 2e-7 at most when it was written.
    for step in range(1, STEPS + 1):
        assert ours[step]["loss"] == pytest.approx(theirs[step - 1], rel=1e-5), step
    assert ours[STEPS]["loss"] < 0.6 * ours[1]["loss"]
