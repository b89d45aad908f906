"""What the ranks of a server do next, decided by the first and done by all."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qwen_megatron.inference.completion import Request, Step
from qwen_megatron.inference.running_batch import RunningBatch
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.parallel.objects import broadcast, list_of, of_type

INTEGERS = list_of(of_type(int))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Before a step of the batch: what leaves it and what joins it.

    Attributes:
        cancelled: Numbers of requests that nobody wants any more.
        added: New requests.
        is_last: Nothing follows; the ranks part.
    """

    cancelled: tuple[int, ...] = ()
    added: tuple[Request, ...] = ()
    is_last: bool = False


def share(plan: Plan | None) -> Plan:
    """The first rank's plan, on all ranks. Collective; others give None."""
    return broadcast(None if plan is None else dataclasses.asdict(plan), parse_plan)


def parse_plan(value: Any) -> Plan:
    """A parser for `parallel.objects`."""
    return Plan(
        cancelled=tuple(INTEGERS(value["cancelled"])),
        added=tuple(parse_request(request) for request in value["added"]),
        is_last=of_type(bool)(value["is_last"]),
    )


def parse_request(value: Any) -> Request:
    """A request from JSON, which has lists in the place of tuples."""
    sampling: dict[str, Any] = {
        name: tuple(item) if isinstance(item, list) else item for name, item in value["sampling"].items()
    }
    return Request(
        number=of_type(int)(value["number"]),
        prompt=tuple(INTEGERS(value["prompt"])),
        sampling=Sampling(**sampling),
        draws=of_type(int, type(None))(value["draws"]),
    )


def carry_out(plan: Plan, batch: RunningBatch) -> list[Step]:
    """Does what a plan says, and a step if there is anything to do."""
    for number in plan.cancelled:
        batch.cancel(number)
    for request in plan.added:
        batch.add(request)
    return [] if batch.is_done else batch.step()


def follow(batch: RunningBatch) -> None:
    """Carries out the first rank's plans until the last."""
    while not (plan := share(None)).is_last:
        carry_out(plan, batch)
