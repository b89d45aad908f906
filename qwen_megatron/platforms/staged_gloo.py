"""gloo for the tensors of a GPU that several ranks share in a test: everything goes through the host.

gloo itself takes tensors of a GPU in some collectives and in no transfers; NCCL refuses two ranks on one GPU. Slow by
its nature: each collective waits for the GPU.
"""

# mypy: disable-error-code="override, assignment"
# torch calls these in one of the ways that its own class declares.

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

Tensors = Sequence[torch.Tensor]


def beyond_gloo(tensor: torch.Tensor) -> bool:
    """Whether gloo needs a copy of it: it takes for granted that elements follow each other in memory of the host."""
    return not (tensor.is_cpu and tensor.is_contiguous())


class StagedWork:
    """A collective on copies of the host, as far as its callers use the handle.

    Args:
        works: Those of gloo.
        results: Tensors of a device, each with the copy that holds what is to be written to it.
        held: Copies that must stay until the works are done.
    """

    def __init__(self, works: Sequence[Any], results: Sequence[tuple[torch.Tensor, torch.Tensor]], held: Tensors = ()):
        self.works = works
        self.results = results
        self.held = held

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Waits on the host, and writes the results to the device once."""
        for work in self.works:
            work.wait() if timeout is None else work.wait(timeout)
        for tensor, copy in self.results:
            if copy is not tensor:
                with torch.no_grad():
                    tensor.copy_(copy)
        self.works, self.results, self.held = (), (), ()
        return True

    def is_completed(self) -> bool:
        """Whether nobody need wait."""
        return all(work.is_completed() for work in self.works) and not self.results


class StagedGloo(dist.ProcessGroup):
    """A group whose members may share a GPU.

    Args:
        store, rank, size, timeout: As for gloo's group.
        needs_copy: Of a tensor, whether gloo needs a copy of it.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        timeout: timedelta,
        needs_copy: Callable[[torch.Tensor], bool] = beyond_gloo,
    ):
        super().__init__(rank, size)  # type: ignore[call-arg]
        self.needs_copy = needs_copy
        self.last = StagedWork((), ())
        gloo: Any = dist.ProcessGroupGloo(store, rank, size, timeout)
        self.gloo = gloo
        # torch has renamed both; what is not there any more has the other name.
        self.gather_single = getattr(gloo, "all_gather_single", None) or gloo._allgather_base
        self.scatter_single = getattr(gloo, "reduce_scatter_single", None) or gloo._reduce_scatter_base

    def getBackendName(self) -> str:
        """As torch asks for it."""
        return "gloo_for_testing"

    def copied(self, tensor: torch.Tensor) -> torch.Tensor:
        """What gloo may read and write in its place, with the same content."""
        if not self.needs_copy(tensor):
            return tensor
        return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """What gloo may write in its place, without content."""
        if not self.needs_copy(tensor):
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    def in_place(self, collective: Callable[..., Any], tensors: Tensors, *rest: Any) -> StagedWork:
        """A collective that reads and writes the same tensors."""
        copies = [self.copied(tensor) for tensor in tensors]
        return StagedWork([collective(copies, *rest)], list(zip(tensors, copies, strict=True)))

    def one_to_one(self, collective: Callable[..., Any], output: torch.Tensor, input_: torch.Tensor, *rest: Any) -> Any:
        """A collective from one tensor to another."""
        place, copy = self.place(output), self.copied(input_)
        return StagedWork([collective(place, copy, *rest)], [(output, place)], [copy])

    def broadcast(self, tensors: Tensors, opts: Any) -> StagedWork:
        """See `torch.distributed`."""
        return self.in_place(self.gloo.broadcast, tensors, opts)

    def allreduce(self, tensors: Tensors, opts: Any) -> StagedWork:
        """See `torch.distributed`."""
        return self.in_place(self.gloo.allreduce, tensors, opts)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any) -> StagedWork:
        """See `torch.distributed`."""
        return self.in_place(self.gloo.allreduce_coalesced, tensors, opts)

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> StagedWork:
        """See `torch.distributed`."""
        places = [[self.place(tensor) for tensor in tensors] for tensors in outputs]
        copies = [self.copied(tensor) for tensor in inputs]
        pairs = [pair for ones, others in zip(outputs, places, strict=True) for pair in zip(ones, others, strict=True)]
        return StagedWork([self.gloo.allgather(places, copies, *options(opts))], pairs, copies)

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> StagedWork:
        """See `torch.distributed`."""
        places = [[self.place(tensor) for tensor in tensors] for tensors in outputs]
        copies = [self.copied(tensor) for tensor in inputs]
        pairs = [pair for ones, others in zip(outputs, places, strict=True) for pair in zip(ones, others, strict=True)]
        return StagedWork([self.gloo.gather(places, copies, opts)], pairs, copies)

    def all_gather_single(self, output: torch.Tensor, input_: torch.Tensor, opts: Any = None) -> StagedWork:
        """See `torch.distributed`."""
        return self.one_to_one(self.gather_single, output, input_, *options(opts))

    def reduce_scatter_single(self, output: torch.Tensor, input_: torch.Tensor, opts: Any) -> StagedWork:
        """See `torch.distributed`."""
        return self.one_to_one(self.scatter_single, output, input_, opts)

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> StagedWork:
        """See `torch.distributed`."""
        return self.together([self.all_gather_single(*pair, opts) for pair in zip(outputs, inputs, strict=True)])

    def reduce_scatter_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any) -> StagedWork:
        """See `torch.distributed`."""
        return self.together([self.reduce_scatter_single(*pair, opts) for pair in zip(outputs, inputs, strict=True)])

    # Names of torch before 2.13.
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def send(self, tensors: Tensors, rank: int, tag: int = 0) -> StagedWork:
        """See `torch.distributed`."""
        copies = [self.copied(tensor) for tensor in tensors]
        return StagedWork([self.gloo.send(copies, rank, tag)], [], copies)

    def recv(self, tensors: Tensors, rank: int, tag: int = 0) -> StagedWork:
        """See `torch.distributed`."""
        places = [self.place(tensor) for tensor in tensors]
        return StagedWork([self.gloo.recv(places, rank, tag)], list(zip(tensors, places, strict=True)))

    def barrier(self, opts: Any = None) -> StagedWork:
        """See `torch.distributed`; the device that the options name is none of gloo's."""
        return StagedWork([self.gloo.barrier()], [])

    def together(self, works: Sequence[StagedWork]) -> StagedWork:
        """Several as one, for which a caller that says when it begins and ends may ask again."""
        self.last = StagedWork(
            [work for one in works for work in one.works],
            [pair for one in works for pair in one.results],
            [tensor for one in works for tensor in one.held],
        )
        return self.last

    def _start_coalescing(self, device: torch.device) -> None:
        """See `torch.distributed._coalescing_manager` with a device."""
        self.last = StagedWork((), ())

    def _end_coalescing(self, device: torch.device) -> StagedWork:
        """See `torch.distributed._coalescing_manager` with a device."""
        return self.last

    def _get_backend(self, device: torch.device) -> Any:
        """What torch asks whether it takes several transfers at once: gloo does not."""
        return self.gloo


def options(opts: Any) -> tuple[Any, ...]:
    """Those that were given."""
    return () if opts is None else (opts,)


def register(name: str, needs_copy: Callable[[torch.Tensor], bool] = beyond_gloo) -> None:
    """Makes a backend of that name known to torch, once per process."""
    if hasattr(dist.Backend, name.upper()):
        return

    def create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> StagedGloo:
        return StagedGloo(store, rank, size, timeout, needs_copy)

    dist.Backend.register_backend(name, create, devices=["cpu", "cuda"])
