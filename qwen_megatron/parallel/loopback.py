"""torchrun for one machine, with nothing that listens beyond it.

    python -m qwen_megatron.parallel.loopback --nproc-per-node 8 -m qwen_megatron pretrain ...

takes torchrun's options. torchrun's own stores (torch 2.13) listen on all interfaces and ask nobody for a password, and
its rendezvous unpickles what it finds there. Here the one store of agent and ranks listens on 127.0.0.1, the rendezvous
of a single agent needs no messages, and gloo and NCCL are told to use the loopback interface.
"""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import MutableMapping, Sequence

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.run import parse_args, run

from qwen_megatron.errors import PlatformError
from qwen_megatron.parallel.rendezvous import LOOPBACK, loopback_store

NAME = "loopback"
# Of Linux and of macOS; set by the user, they stay.
INTERFACES = ("lo", "lo0")
INTERFACE_SETTINGS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class LoopbackHandler(RendezvousHandler):
    """The rendezvous of one agent: it is always complete."""

    def __init__(self, run_id: str):
        self.run_id = run_id
        self.store = loopback_store()
        self.rounds = 0
        self.closed = False

    def get_backend(self) -> str:
        return NAME

    @property
    def use_agent_store(self) -> bool:
        """The ranks of all attempts meet in the agent's store, as under torchrun."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        self.rounds += 1
        store = dist.PrefixStore(f"round/{self.rounds}", self.store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(LOOPBACK, self.store.port))

    def is_closed(self) -> bool:
        return self.closed

    def set_closed(self) -> None:
        self.closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self.run_id

    def shutdown(self) -> bool:
        self.closed = True
        return True


def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """The handler of a rendezvous on this machine.

    Raises:
        PlatformError: if there is to be more than one node.
    """
    if parameters.max_nodes != 1:
        raise PlatformError(
            f"--nnodes {parameters.max_nodes}: this launcher is for one machine; start several with torchrun"
        )
    return LoopbackHandler(parameters.run_id)


def stay_on_loopback(environment: MutableMapping[str, str]) -> None:
    """Lets the ranks' collectives use the loopback interface, unless the user has named one."""
    present = [name for _, name in socket.if_nameindex() if name in INTERFACES]
    for setting in INTERFACE_SETTINGS if present else ():
        environment.setdefault(setting, present[0])


def rendezvous_options() -> list[str]:
    """torchrun's options for a rendezvous on this machine, which it knows from then on."""
    rendezvous_handler_registry.register(NAME, create_handler)
    options = ["--rdzv-backend", NAME, "--rdzv-endpoint", LOOPBACK, "--rdzv-id", uuid.uuid4().hex]
    return [*options, "--local-addr", LOOPBACK]


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Starts the processes and waits for them; arguments are torchrun's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    stay_on_loopback(os.environ)
    run(parse_args([*rendezvous_options(), *arguments]))


if __name__ == "__main__":
    main()
