"""The ranks of one machine watch each other's processes.

gloo fails in the ranks that wait for a dead one. NCCL does not notice: they would wait until a time-out, or until
torchrun kills them, 30 s after its first signal, without a word.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch.distributed as dist

from qwen_megatron.jobs.peers import has_ended, is_of, machine, read_beats

# What a collective that notices by itself needs to raise; torchrun kills 30 s after a rank has ended.
GRACE_SECONDS = 10.0


class Neighbours:
    """Processes of other ranks on this machine.

    Args:
        store: The attempt's store, of the caller's own.
        ranks: The others that the launcher put on this machine.
    """

    def __init__(self, store: dist.Store, ranks: Iterable[int]):
        self.store = store
        self.unknown = set(ranks)
        self.identities: dict[int, str] = {}
        self.lost: dict[int, float] = {}

    def long_lost(self) -> int | None:
        """A rank whose process ended `GRACE_SECONDS` ago without having come to the end of its job; None for none.

        The store is asked about ranks that have not been seen yet or have just ended, otherwise nobody.
        """
        here = machine()
        for rank, beat in read_beats(self.store, self.unknown).known.items():
            self.unknown.discard(rank)
            if is_of(here, beat.identity):
                self.identities[rank] = beat.identity
        ended = [rank for rank, identity in self.identities.items() if rank not in self.lost and has_ended(identity)]
        for rank, beat in read_beats(self.store, ended).known.items():
            if beat.gone and not beat.failed:
                del self.identities[rank]
            else:
                self.lost[rank] = time.monotonic()
        deadline = time.monotonic() - GRACE_SECONDS
        return next((rank for rank, since in self.lost.items() if since < deadline), None)
