"""Where the ranks of one attempt meet, before there is any group.

torchrun keeps one store for all attempts of a job (torch 2.13), and with it what killed processes left there: restarted
ranks would look for the dead ones. So rank 0 gives every attempt a name of its own, and everything after the rendezvous
happens under that name. The count of restarts will not do: two agents of one job count differently.

Each other rank says hello with a word nobody used before. An answer to that word can only come from the rank 0 of its
own attempt, because torchrun starts nobody before all processes of the last attempt are gone.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from qwen_megatron.errors import PlatformError
from qwen_megatron.platforms import Platform

# Seconds between looks at who has come; ranks arrive seconds apart anyway.
PAUSE_SECONDS = 0.02
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Member:
    """This process's place in a job whose ranks have all come.

    Attributes:
        rank: Its number.
        world_size: Processes of the job.
        device: Where its tensors live.
        store: Shared by the ranks of this attempt, and new.
    """

    rank: int
    world_size: int
    device: torch.device
    store: dist.Store


def join_job(platform: Platform, timeout_seconds: float) -> Member:
    """Joins the job that torchrun started, or makes a job of one process where it did not.

    Args:
        platform: Machine.
        timeout_seconds: All ranks have come by then.
    Raises:
        PlatformError: if torchrun's variables are incomplete, or a rank does not come.
    """
    if "WORLD_SIZE" not in os.environ:
        return Member(rank=0, world_size=1, device=platform.device(0), store=dist.HashStore())
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise PlatformError(
            f"WORLD_SIZE is set but {', '.join(missing)} is not; start with torchrun, or unset WORLD_SIZE"
        )
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = meet(open_store(rank, timeout_seconds), rank, world_size, timeout_seconds)
    device = platform.device(int(os.environ["LOCAL_RANK"]))
    return Member(rank=rank, world_size=world_size, device=device, store=store)


def open_store(rank: int, timeout_seconds: float) -> dist.Store:
    """A connection to the job's store: torchrun's agent has it, or rank 0 where another launcher started the job.

    Raises:
        PlatformError: if nobody answers there.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        if hosts_store and is_loopback(host):
            return loopback_store(port, timeout_seconds)
        return dist.TCPStore(
            host,
            port,
            is_master=hosts_store,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_seconds),
            multi_tenant=True,
        )
    except (RuntimeError, OSError) as error:
        raise PlatformError(
            f"rank {rank}: no store at {host}:{port} (MASTER_ADDR, MASTER_PORT) within {timeout_seconds:g} s: {error}"
        ) from error


def loopback_store(port: int = 0, timeout_seconds: float = 300.0) -> dist.TCPStore:
    """A store that this process serves to this machine alone.

    Args:
        port: Where it listens; 0 for any free one.
        timeout_seconds: Of its requests.
    Raises:
        OSError: if the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(1024)
        port = listener.getsockname()[1]
    except OSError:
        listener.close()
        raise
    # The store takes the socket over.
    return dist.TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_seconds),
        master_listen_fd=listener.detach(),
    )


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's to itself."""
    try:
        return all(ipaddress.ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False


def meet(store: dist.Store, rank: int, world_size: int, timeout_seconds: float) -> dist.Store:
    """Waits for all ranks of this attempt.

    Args:
        store: Shared by all ranks, possibly used by earlier attempts.
        rank: Number of this process.
        world_size: Processes of the job.
        timeout_seconds: How long to wait for the others.
    Returns:
        A store in which nobody but this attempt has ever written.
    Raises:
        PlatformError: on every rank that has come, naming those that have and those that have not.
    """
    name = receive(store, world_size, timeout_seconds) if rank == 0 else join(store, rank, timeout_seconds)
    return dist.PrefixStore(f"attempt/{name}", store)


def receive(store: dist.Store, world_size: int, timeout_seconds: float) -> str:
    """Rank 0 names the attempt and answers everybody who says hello."""
    name = uuid.uuid4().hex
    present, missing = {0: this_process()}, set(range(1, world_size))
    deadline = time.monotonic() + timeout_seconds
    while missing and time.monotonic() < deadline:
        for rank in sorted(missing):
            if store.check([f"hello/{rank}"]):
                # It may be the word of a dead process; nobody waits for that answer.
                store.set(f"answer/{store.get(f'hello/{rank}').decode()}", name)
            if store.check([f"joined/{name}/{rank}"]):
                present[rank] = store.get(f"joined/{name}/{rank}").decode()
        missing -= present.keys()
        time.sleep(PAUSE_SECONDS if missing else 0)
    problem = ""
    if missing:
        who = ", ".join(f"{rank} ({where})" for rank, where in sorted(present.items()))
        problem = (
            f"ranks {', '.join(map(str, sorted(missing)))} have not joined within {timeout_seconds:g} s; present: "
            f"ranks {who}. Look at the missing ones' machines, or raise parallel.start_timeout_seconds"
        )
    store.set(f"problem/{name}", json.dumps(problem))
    if problem:
        raise PlatformError(problem)
    return name


def join(store: dist.Store, rank: int, timeout_seconds: float) -> str:
    """Another rank says hello, learns the attempt's name, and waits until all have come."""
    word = uuid.uuid4().hex
    store.set(f"hello/{rank}", word)
    try:
        store.wait([f"answer/{word}"], timedelta(seconds=timeout_seconds))
        name = store.get(f"answer/{word}").decode()
        store.set(f"joined/{name}/{rank}", this_process())
        # Rank 0 came earlier or as late as allowed, and waits as long: its word arrives within that time.
        store.wait([f"problem/{name}"], timedelta(seconds=timeout_seconds + 5))
    except (dist.DistStoreError, RuntimeError) as error:
        raise PlatformError(
            f"rank {rank} ({this_process()}): rank 0 has not joined within {timeout_seconds:g} s or is gone. Look at "
            "its machine, or raise parallel.start_timeout_seconds"
        ) from error
    problem = json.loads(store.get(f"problem/{name}"))
    if problem:
        raise PlatformError(problem)
    return name


def this_process() -> str:
    """Host and process number, for people."""
    return f"{socket.gethostname()}, process {os.getpid()}"
