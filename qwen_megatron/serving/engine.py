"""The engine: requests of many clients join one running batch.

It runs in the thread that opened the model, since torch's modes and the collectives of a job belong to a thread. Other
threads submit and cancel; what they say goes through a queue that a signal's handler may use too.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen_megatron.inference.completion import Completion, FinishReason, Request
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.progress import Piece, Progress
from qwen_megatron.inference.running_batch import RunningBatch
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.serving.plan import Plan, carry_out, share

# While nothing is to do, other ranks hear from the first this often: their collective must not time out.
HEARTBEAT_SECONDS = 30.0
# Tokens of prompts that join before a step; texts under way wait for them.
JOINING_TOKENS = 8192


class QueueFullError(Exception):
    """As many requests run and wait as may."""


class StoppingError(Exception):
    """The engine takes no more requests."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy the engine is.

    Attributes:
        running: Texts in the batch.
        waiting: Requests that have no place in it yet.
        cache_bytes: Memory of keys and values on this rank.
    """

    running: int = 0
    waiting: int = 0
    cache_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A client's request.

    Attributes:
        request: What is asked for.
        progress: Of its completion.
        deliver: Takes each piece, in the engine's thread; must not block.
    """

    request: Request
    progress: Progress
    deliver: Callable[[Piece], None]


class Engine:
    """Runs the requests of other threads.

    Args:
        generator: Model; as many texts run at once as it has rows.
        max_waiting: Requests that may wait for a place.
    Attributes:
        load: As of the last step.
        is_stopping: Whether new requests are refused.
    """

    def __init__(self, generator: Generator, max_waiting: int):
        self.generator = generator
        self.max_pending = generator.max_rows + max_waiting
        self.batch = RunningBatch(generator.staged, generator.num_tokens, generator.max_rows)
        self.load = Load()
        self.is_stopping = False
        self.deadline = float("inf")
        self.numbers = itertools.count()
        # Tickets, numbers to cancel, and None, which only wakes the engine.
        self.inbox: queue.SimpleQueue[Ticket | int | None] = queue.SimpleQueue()
        # Guards `num_pending` and `has_ended`; never taken in a signal's handler.
        self.lock = threading.Lock()
        self.num_pending = 0
        self.has_ended = False
        # Of the engine's thread alone.
        self.tickets: dict[int, Ticket] = {}
        self.waiting: deque[int] = deque()
        self.cancelled: list[int] = []

    def submit(self, prompt: Sequence[int], sampling: Sampling, deliver: Callable[[Piece], None]) -> int:
        """Queues a request, from any thread; returns its number.

        Args:
            prompt: Token ids.
            sampling: How it goes on; the seed alone fixes the draws.
            deliver: Takes each piece, in the engine's thread; must not block. The last one has a finish reason.
        Raises:
            DataError: if the prompt is empty or has ids that the model does not know.
            QueueFullError, StoppingError: if it is not taken.
        """
        request = self.generator.request(next(self.numbers), prompt, sampling, draws=0)
        progress = Progress(request.number, self.generator.vocabulary, sampling.stop, Completion())
        with self.lock:
            if self.is_stopping or self.has_ended:
                raise StoppingError
            if self.num_pending >= self.max_pending:
                raise QueueFullError
            self.num_pending += 1
            self.inbox.put(Ticket(request=request, progress=progress, deliver=deliver))
        return request.number

    def cancel(self, number: int) -> None:
        """Gives up a request, from any thread, with its part of the cache; one that has ended is none."""
        self.inbox.put(number)

    def stop(self, grace_seconds: float) -> None:
        """Takes no more requests; ends when those there are have ended, or are cancelled after a time.

        From any thread, and from a signal's handler; a second call may shorten the time.
        """
        self.deadline = min(self.deadline, time.monotonic() + grace_seconds)
        self.is_stopping = True
        self.inbox.put(None)

    def run(self) -> None:
        """Works until it is stopped. Collective: other ranks call `plan.follow`."""
        try:
            while True:
                self.take_in()
                if self.is_stopping and not self.tickets:
                    share(Plan(is_last=True))
                    return
                steps = carry_out(share(self.next_plan()), self.batch)
                self.publish()
                for step in steps:
                    if step.number in self.tickets:
                        self.hand_out(self.tickets[step.number].progress.take(step))
        finally:
            self.end()

    def take_in(self) -> None:
        """Reads what other threads have said; waits for it while there is nothing to do."""
        is_idle = not self.tickets and not self.cancelled and not self.is_stopping
        with contextlib.suppress(queue.Empty):
            self.take(self.inbox.get(block=is_idle, timeout=HEARTBEAT_SECONDS if is_idle else None))
            while True:
                self.take(self.inbox.get_nowait())
        if time.monotonic() >= self.deadline:
            for number in list(self.tickets):
                self.take(number)

    def take(self, message: Ticket | int | None) -> None:
        """Notes a new request or one to be cancelled."""
        if isinstance(message, Ticket):
            self.tickets[message.request.number] = message
            self.waiting.append(message.request.number)
        elif message in self.tickets:
            self.hand_out(Piece(index=message, token=None, text="", finish_reason=FinishReason.CANCELLED))

    def next_plan(self) -> Plan:
        """What has been cancelled, and the requests that there is room for."""
        cancelled, self.cancelled = self.cancelled, []
        room = self.batch.max_rows - sum(row.request.number not in cancelled for row in self.batch.rows)
        added: list[Request] = []
        while self.waiting and len(added) < room and sum(len(one.prompt) for one in added) < JOINING_TOKENS:
            added.append(self.tickets[self.waiting.popleft()].request)
        return Plan(cancelled=tuple(cancelled), added=tuple(added))

    def hand_out(self, piece: Piece) -> None:
        """Gives a piece to whoever asked for it; after the last one the request is forgotten."""
        ticket = self.tickets[piece.index]
        if piece.finish_reason is not None:
            del self.tickets[piece.index]
            if piece.index in self.waiting:
                self.waiting.remove(piece.index)
            else:
                # After a stop text, or when nobody wants the rest, the batch would go on; where it has ended, this is
                # nothing to it.
                self.cancelled.append(piece.index)
            with self.lock:
                self.num_pending -= 1
        ticket.deliver(piece)

    def publish(self) -> None:
        """Tells how busy the engine is."""
        self.load = Load(
            running=len(self.batch.rows), waiting=len(self.waiting), cache_bytes=self.batch.cache.num_bytes
        )

    def end(self) -> None:
        """Gives up what is left, after an error too; nothing is taken any more."""
        with self.lock:
            self.has_ended = True
        with contextlib.suppress(queue.Empty):
            while True:
                self.take(self.inbox.get_nowait())
        for number in list(self.tickets):
            self.take(number)
