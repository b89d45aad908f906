"""PPO: a policy and a value model learn from a reward model, near a reference model; all four on one mesh.

A step: a batch of queries is answered by the policy, every answer is judged by the four models in passes without
gradients, and minibatches of the answers go through ordinary training steps. In the first steps only the value model
learns. Source: Qwen Technical Report, section 3.2.2.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from qwen_megatron.alignment.advantages import summed
from qwen_megatron.alignment.collecting import Models, credited, described, judged, responded
from qwen_megatron.alignment.learning import Learner, mean
from qwen_megatron.alignment.rewards import RunningMoments
from qwen_megatron.alignment.rollout import Query
from qwen_megatron.alignment.samples import SamplesHook
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.protocol import Needs
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.inference.vocabulary import vocabulary_of_sources
from qwen_megatron.jobs.frozen import check_same_content
from qwen_megatron.jobs.hooks import configured_hooks
from qwen_megatron.jobs.ppo_models import build_models, frozen_contents, start_value
from qwen_megatron.jobs.pretrain import loader_of
from qwen_megatron.jobs.queries import open_pretraining, open_queries, ppo_sources, pretraining_samples
from qwen_megatron.jobs.resume import restore
from qwen_megatron.jobs.session import Session, session
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.parallel.objects import broadcast, dict_of, of_type
from qwen_megatron.parallel.rng import derived_seed
from qwen_megatron.train.job import Job, StepOutcome
from qwen_megatron.train.names import MAIN, VALUE
from qwen_megatron.train.run import Hook, Run
from qwen_megatron.train.schedule import learning_rate
from qwen_megatron.train.state import TrainState


class Ppo(Job):
    """Steps over a blend of queries.

    Args:
        config: Resolved configuration.
        groups: Layout.
        models: The four models and the rollout.
        contents: What the frozen models are, by the setting that names them; a run goes on with no others.
    Raises:
        DataError: if a corpus is missing, damaged, too small or of another kind.
    """

    loss_title = "Loss of the policy; held out: mean score, its sign turned"

    def __init__(self, config: ResolvedConfig, groups: Groups, models: Models, contents: Mapping[str, str]):
        self.config, self.groups = config, groups
        self.models, self.contents = models, contents
        self.learner, self.scores = Learner(config, models), RunningMoments()
        self.dataset, self.pretraining = open_queries(config), open_pretraining(config)
        # Every stage generates, and so needs the queries.
        self.loader = loader_of(self.dataset, config, groups, needs=Needs())
        self.text_loader = None if self.pretraining is None else loader_of(self.pretraining, config, groups)
        self.queries: Iterator[Batch] | None = None
        self.texts: Iterator[Batch] | None = None
        self.rows: Batch | None = None

    def num_steps(self, state: TrainState) -> int:
        return self.config.training.train_iters

    def samples_of(self, state: TrainState, steps: int) -> int:
        return steps * self.config.training.global_batch_size

    def step(self, run: Run) -> StepOutcome:
        training, options, step = self.config.training, self.config.ppo, run.state.iteration + 1
        self.open_streams(run.state.consumed_samples)
        clock = [time.perf_counter()]
        queries = self.taken(self.queries, self.config.num_microbatches)
        sampling = self.sampling("rollout", step)
        rows = responded(self.models, queries, options.responses_per_query, sampling, training.seq_length)
        clock.append(time.perf_counter())
        rows = judged(self.models, rows, training.micro_batch_size)
        self.rows = rows = credited(rows, self.scores, options, self.groups)
        measured = described(rows, torch.ones(len(rows.tokens_bs), dtype=torch.bool), self.groups)
        clock.append(time.perf_counter())
        rate = learning_rate(step, self.config.optimizer)
        learned = self.learner.learn(rows, step=step, rate=rate, texts=self.texts)
        clock.append(time.perf_counter())
        return StepOutcome(
            # Of the policy, 0 while it is not trained.
            loss=mean(result.loss for result in learned.policy),
            grad_norm=mean(result.grad_norm for result in learned.policy),
            learning_rate=rate if learned.policy else 0.0,
            batch_size=training.global_batch_size,
            tokens=round(measured.pop("tokens")),
            metrics={**measured, **learned.metrics, **self.parts_of_time(clock)},
            skipped_steps=self.learner.skipped,
        )

    def open_streams(self, consumed_queries: int) -> None:
        """Opens queries and pretraining text where the run stands, if they are not open."""
        if self.queries is None:
            self.queries = self.loader.training(consumed_queries)
        if self.texts is None and self.text_loader is not None and self.config.ppo.pretraining_coefficient:
            self.texts = self.text_loader.training(pretraining_samples(self.config, consumed_queries))

    def taken(self, batches: Iterator[Batch] | None, count: int) -> list[Query]:
        """The queries of so many micro-batches; fillers have the number -1."""
        assert batches is not None
        return [
            Query(number=int(number), tokens=tuple(row[:length].tolist()))
            for batch in itertools.islice(batches, count)
            for row, length, number in zip(
                batch.tokens_bs, batch.extras["lengths_b"], batch.extras["numbers_b"], strict=True
            )
        ]

    def sampling(self, *names: object) -> Sampling:
        """How responses are drawn; draws are named by the run's seed and these names, query and sample."""
        options = self.config.ppo
        return Sampling(
            max_new_tokens=options.response_length,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=derived_seed(self.config.training.seed, *names),
            stop_token_ids=(self.dataset.end_of_turn,),
        )

    def parts_of_time(self, clock: Sequence[float]) -> dict[str, float]:
        """Seconds of the parts of a step, mean over replicas; collective."""
        names = ("rollout_seconds", "judging_seconds", "learning_seconds")
        parts = [torch.tensor(later - sooner) for sooner, later in itertools.pairwise(clock)]
        means = (summed(parts, self.groups) / self.groups.dp.size()).tolist()
        # The ranks of a replica have clocks of their own: rank 0's is told.
        return broadcast(dict(zip(names, means, strict=True)), dict_of(of_type(float)))

    def evaluated_corpora(self) -> Sequence[str | None]:
        return [None] if self.dataset.eval_ids else []

    def evaluate(self, run: Run, corpus: str | None = None) -> tuple[float, Mapping[str, float]]:
        """One response to each held-out query, drawn alike every time; the loss is the mean score, its sign turned."""
        training, sampling = self.config.training, self.sampling("evaluation")
        queries = self.taken(self.loader.evaluation(), self.loader.num_evaluation_microbatches)
        rows = responded(self.models, queries, 1, sampling, training.seq_length)
        rows = judged(self.models, rows, training.micro_batch_size, with_values=False)
        measured = described(rows, torch.tensor([query.number >= 0 for query in queries]), self.groups)
        del measured["tokens"]
        return -measured["reward"], measured

    def sources(self, state: TrainState) -> dict[str, dict[str, Any]]:
        return ppo_sources(self.config, self.dataset, self.pretraining, state.consumed_samples)

    def check_data(self) -> None:
        for dataset in (self.dataset, *([] if self.pretraining is None else [self.pretraining])):
            dataset.check_unchanged()

    def state_dict(self) -> dict[str, Any]:
        """Moments of the scores, and what the frozen models are: those are not saved."""
        return {"scores": self.scores.state_dict(), "frozen": dict(self.contents)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            CheckpointError: if the run was trained beside other frozen models.
        """
        for key, content in self.contents.items():
            check_same_content(key, saved["frozen"][key], content)
        self.scores.load_state_dict(saved["scores"])

    def close(self) -> None:
        for loader in (self.loader, *([] if self.text_loader is None else [self.text_loader])):
            loader.close()


def ppo(config: ResolvedConfig, more_hooks: Sequence[Hook] = ()) -> str | None:
    """Runs a configuration on this rank, from the newest checkpoint where there is one.

    Args:
        config: Resolved configuration.
        more_hooks: Called before the configured ones.
    Returns:
        Why it left early and in order, such as the name of a signal; None if it came to its end.
    Raises:
        DataError, CheckpointError, PlatformError, TrainingError: see their messages; nothing is left half-written.
    """
    with session(config) as given:
        run = build_run(config, given)
        run.hooks = [*more_hooks, *run.hooks]
        given.train(run)
        return run.stopping


def build_run(config: ResolvedConfig, given: Session) -> Run:
    """Builds the four models, opens the data, restores the state and puts the hooks in order."""
    vocabulary = vocabulary_of_sources(open_queries(config).sources(0))
    num_tokens = config.model.vocab_size if vocabulary is None else vocabulary.num_tokens
    models = build_models(config, given, num_tokens=num_tokens)
    trainables = {MAIN: models.policy, VALUE: models.value}
    job = Ppo(config, given.groups, models, frozen_contents(config))
    state = restore(job, trainables)
    if state.iteration == 0:
        start_value(config, models.value)
    options = config.ppo
    samples = SamplesHook(
        lambda: job.rows, interval=options.sample_interval, count=options.num_samples, vocabulary=vocabulary
    )
    return Run(
        job=job,
        directory=given.directory,
        groups=given.groups,
        platform=given.platform,
        timers=given.timers,
        trainables=trainables,
        state=state,
        hooks=[samples, *configured_hooks(config, given.lock)],
    )
