"""What a step of PPO changes: minibatches of its rows through ordinary training steps of two models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qwen_megatron.alignment.advantages import summed
from qwen_megatron.alignment.collecting import Models
from qwen_megatron.alignment.experience import pieces, weighed
from qwen_megatron.alignment.policy_loss import PolicyLoss
from qwen_megatron.alignment.value_loss import ValueLoss
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.train.objective import Objective
from qwen_megatron.train.step import StepResult, train_step
from qwen_megatron.train.step_guard import StepGuard
from qwen_megatron.train.trainable import Trainable


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What the updates of a step measured, in their order; of the policy nothing while it is not trained."""

    policy: Sequence[StepResult]
    value: Sequence[StepResult]

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the updates."""
        found = {
            "value_loss": mean(result.loss for result in self.value),
            "value_grad_norm": mean(result.grad_norm for result in self.value),
        }
        for results in (self.policy, self.value):
            for name in results[0].metrics if results else ():
                found[name] = mean(result.metrics[name] for result in results)
        return found


class Learner:
    """Trains policy and value model on the rows of a step.

    A minibatch is whole micro-batches of every replica, in the order in which they were read, so that any layout has
    the same minibatches.

    Args:
        config: Resolved configuration.
        models: Policy and value are trained in place.
    """

    def __init__(self, config: ResolvedConfig, models: Models):
        self.config, self.options, self.models = config, config.ppo, models
        training = config.training
        self.shape = BatchShape(micro_batch_size=training.micro_batch_size, seq_length=training.seq_length)
        self.of_policy = PolicyLoss(
            clip_range=self.options.ratio_clip, pretraining_coefficient=self.options.pretraining_coefficient
        )
        self.of_value = ValueLoss(clip_range=self.options.value_clip)
        self.guards = {
            one.name: StepGuard(max_skips=training.skip_nonfinite_steps) for one in (models.policy, models.value)
        }

    @property
    def skipped(self) -> int:
        """Updates that were left out because they were not finite."""
        return sum(guard.skipped for guard in self.guards.values())

    def learn(self, rows: Batch, *, step: int, rate: float, texts: Iterator[Batch] | None) -> Learned:
        """Goes through the minibatches, `num_epochs` times.

        Args:
            rows: Of this replica, as `collecting.credited` gives them.
            step: Of the run; up to `value_warmup_iters` the value model alone is trained.
            rate: Of the policy; that of the value model is in proportion.
            texts: Micro-batches of pretraining text without end; None for none.
        """
        options, policy, value = self.options, [], []
        minibatches = list(pieces(rows, len(rows.tokens_bs) // options.num_minibatches))
        actions = summed([minibatch.loss_mask_bs.sum() for minibatch in minibatches], self.models.policy.groups)
        value_rate = options.value_lr * rate / self.config.optimizer.lr
        for _ in range(options.num_epochs):
            for minibatch, num_actions in zip(minibatches, actions.tolist(), strict=True):
                batches = list(pieces(minibatch, self.shape.micro_batch_size))
                value.append(self.update(self.models.value, self.of_value, batches, step, value_rate))
                if step > options.value_warmup_iters:
                    beside = [] if texts is None else self.weighed_texts(texts, len(batches), num_actions)
                    policy.append(self.update(self.models.policy, self.of_policy, [*batches, *beside], step, rate))
        return Learned(policy=policy, value=value)

    def weighed_texts(self, texts: Iterator[Batch], num_microbatches: int, num_actions: float) -> list[Batch]:
        """Pretraining text beside so many micro-batches of a replica, and actions of all; see `PolicyLoss`."""
        count = num_microbatches * self.options.pretraining_ratio
        tokens = count * self.shape.micro_batch_size * self.config.data_parallel_size * self.shape.seq_length
        weight = self.options.pretraining_coefficient * num_actions / tokens
        return [weighed(next(texts), weight) for _ in range(count)]

    def update(
        self, trainable: Trainable, objective: Objective, batches: Sequence[Batch], step: int, rate: float
    ) -> StepResult:
        """One optimizer step of one model."""
        return train_step(
            trainable,
            objective,
            iter(batches),
            shape=self.shape,
            num_microbatches=len(batches),
            step=step,
            learning_rate=rate,
            clip_grad=self.config.optimizer.clip_grad,
            guard=self.guards[trainable.name],
        )


def mean(numbers: Iterable[float]) -> float:
    """0 of nothing."""
    found = list(numbers)
    return sum(found) / len(found) if found else 0.0
