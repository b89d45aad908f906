"""The engine on several ranks: the first decides, the others follow."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

from qwen_megatron.inference.completion import FinishReason, Request
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.running_batch import RunningBatch
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.serving import engine as engines
from qwen_megatron.serving.engine import Engine
from qwen_megatron.serving.plan import Plan, follow, share
from tests.inference.test_generator import NUM_TOKENS, PROMPTS, Letters, tiny_model
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of

SAMPLING = Sampling(max_new_tokens=7, temperature=0.8, seed=5, stop_token_ids=())


def take(pieces: list[Any], ended: threading.Semaphore, piece: Any) -> None:
    """Keeps a piece of an answer."""
    pieces.append(piece)
    if piece.finish_reason is not None:
        ended.release()


def serve_job(tensor_size: int, pipeline_size: int) -> Any:
    """Requests that come one after the other, one that is cancelled, pauses in which only heartbeats pass."""
    engines.HEARTBEAT_SECONDS = 0.02
    with groups_of(tensor_size, pipeline_size) as groups:
        generator = Generator(tiny_model(groups), groups, Letters(), max_rows=2)
        if os.environ.get("RANK", "0") != "0":
            batch = RunningBatch(generator.staged, NUM_TOKENS, 2)
            follow(batch)
            return batch.cache.num_bytes
        engine = Engine(generator, 9)
        answers: list[list[Any]] = []

        def ask() -> None:
            for _ in range(2):
                threading.Event().wait(0.1)
                ended = threading.Semaphore(0)
                for number, prompt in enumerate(PROMPTS):
                    answers.append([])
                    asked = engine.submit(prompt, SAMPLING, functools.partial(take, answers[-1], ended))
                    if number == 1:
                        engine.cancel(asked)
                for _ in PROMPTS:
                    ended.acquire(timeout=30)
            engine.stop(5.0)

        thread = threading.Thread(target=ask)
        thread.start()
        engine.run()
        thread.join()
        reasons = [pieces[-1].finish_reason for pieces in answers]
        assert reasons == [FinishReason.CANCELLED if number % 4 == 1 else FinishReason.LENGTH for number in range(8)]
        assert engine.load == engines.Load()
        return [[piece.token for piece in pieces] for number, pieces in enumerate(answers) if number % 4 != 1]


def test_ranks_answer_together(ranks: RankPool) -> None:
    (alone,) = ranks.run(1, serve_job, tensor_size=1, pipeline_size=1)
    assert alone[:3] == alone[3:]
    assert all(len(tokens) == 7 for tokens in alone)
    assert ranks.run(2, serve_job, tensor_size=1, pipeline_size=2) == [alone, 0]


def test_a_plan_comes_as_it_was_sent() -> None:
    sampling = Sampling(temperature=0.7, top_p=0.3, seed=2**63 + 1, stop_token_ids=(1, 2), stop=("a", "你"))
    plan = Plan(cancelled=(3,), added=(Request(number=4, prompt=(1, 2), sampling=sampling, draws=0),))
    assert share(plan) == plan
