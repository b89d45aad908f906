"""Which checkpoint all ranks load: rank 0 chooses, every rank makes sure that it sees the same one.

Nodes of a job may see different states of a shared folder: a file system's cache of a directory outlives a fast
restart, a mount may be of an older copy. Ranks that chose for themselves would load two checkpoints and train on. So
rank 0 tells which folder it means and the hash of its manifest; whoever does not see that waits a bounded time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch.distributed as dist

from qwen_megatron.checkpoint.agreement import failing_together
from qwen_megatron.checkpoint.manifest import (
    MANIFEST,
    FileEntry,
    check_latest,
    list_checkpoints,
    listed_files,
    none_whole,
    size_problem,
    verify_files,
)
from qwen_megatron.checkpoint.state import STATE, CheckpointState
from qwen_megatron.checkpoint.storage import METADATA_JSON, check_format
from qwen_megatron.errors import CheckpointError, UnseenCheckpoint
from qwen_megatron.parallel.objects import TEXT_OR_NONE, all_gather, broadcast, dict_of, list_of, of_type

log = logging.getLogger(__name__)

# NFS clients look again at a directory after 60 s at the latest (acdirmax), unless they are set up otherwise.
PATIENCE_SECONDS = 65.0
PAUSE_SECONDS = 0.5
# Ranks that an error names; a whole node may be blind.
TOLD = 8
# At either end of a file of weights.
END_BYTES = 65536
# Every rank reads these whole, whatever its share of the verification.
READ_BY_ALL = (STATE, ".metadata", METADATA_JSON)

Seen = Callable[[], str]


class DamagedCheckpointError(CheckpointError):
    """Rank 0, or whoever read a share of the bytes, found the checkpoint itself wrong: another one may do."""


def choose_newest(directory: Path, patience_seconds: float | None = None) -> Path | None:
    """The newest checkpoint of a run that verifies, the same on all ranks; None if there is none at all. Collective.

    Damaged ones are passed over with a warning.

    Args:
        directory: The run's folder; every rank looks at its own path.
        patience_seconds: How long a rank waits for what others see; None for `PATIENCE_SECONDS`.
    Raises:
        CheckpointError: on every rank: a rank does not see what others see; or there are checkpoints and none is
            whole, or all have gone that were here, so that starting from scratch would lose the run silently.
    """
    patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    names = candidates(directory, patience)
    problems = []
    for name in names:
        try:
            # By now directories have been looked at again, and opening a file asks its server: half is enough.
            agree_on(directory / name, patience / 2)
        except DamagedCheckpointError as error:
            if rank_of_job() == 0:
                log.warning("passing over a damaged checkpoint: %s", error)
            problems.append(str(error))
        else:
            return directory / name
    if problems:
        raise none_whole(directory, problems)
    return None


def candidates(directory: Path, patience_seconds: float) -> list[str]:
    """Names of rank 0's checkpoints, the newest first, once every rank sees the newest that any rank sees.

    Raises:
        CheckpointError: on every rank, if one does not see it in time, or all checkpoints have gone.
    """
    seen = all_gather(newest_name(directory), TEXT_OR_NONE)
    newest = max((name for name in seen if name is not None), key=lambda name: (len(name), name), default=None)
    if newest is not None:
        holder = seen.index(newest)

        def looks() -> str:
            names = [path.name for path in list_checkpoints(directory)]
            return "" if newest in names else f"the newest in {directory} is {names[0] if names else 'none'}"

        wait_together(looks, f"{directory / newest}, which rank {holder} sees", patience_seconds)
    names: list[str] = []
    with failing_together():
        if rank_of_job() == 0:
            names = [path.name for path in list_checkpoints(directory)]
            check_latest(directory, names)
    return broadcast(names, list_of(of_type(str)))


def newest_name(directory: Path) -> str | None:
    """Name of the newest checkpoint of a run; None if there is none."""
    return next((path.name for path in list_checkpoints(directory)), None)


def agree_on(folder: Path, patience_seconds: float | None = None) -> None:
    """Makes sure that all ranks see one whole checkpoint in the folder; collective where a job is running.

    The manifest and what every rank will read is looked at by every rank; presence, size and sha256 of all other files
    are shared between the ranks, so that each file is looked at once. A file that a rank does not see is looked at by
    rank 0 as well, which tells a damaged checkpoint from one that is not seen everywhere.

    Args:
        folder: The checkpoint, at each rank's own path.
        patience_seconds: How long a rank waits for what rank 0 sees; None for `PATIENCE_SECONDS`.
    Raises:
        CheckpointError: on every rank, naming the file, what was expected and what was found, or the rank that does
            not see it.
    """
    problem, expected = None, ""
    if rank_of_job() == 0:
        try:
            listed_files(folder)
            expected = manifest_hash(folder)
        except (CheckpointError, OSError) as error:
            problem = str(error)
    told = broadcast({"problem": problem, "manifest": expected}, dict_of(TEXT_OR_NONE))
    if told["problem"]:
        raise DamagedCheckpointError(told["problem"])
    view = View(folder, str(told["manifest"]), rank_of_job(), dist.get_world_size() if dist.is_initialized() else 1)
    everyone = all_gather([*view.look()], list_of(of_type(str), length=2))
    if any(instead for instead, _ in everyone):
        # Rarely; the healthy way to here has two exchanges and no waiting.
        refuse_damaged(view, sorted({name for _, name in everyone if name}))
        wait_together(
            lambda: view.look()[0],
            f"{folder} as rank 0 sees it, its manifest.json with sha256 {view.manifest[:12]}...",
            patience_seconds,
        )
    verify_share(view)


class View:
    """What this rank sees of a checkpoint: the manifest, and its share of the other files.

    Args:
        folder: The checkpoint, at this rank's path.
        manifest: sha256 of the manifest that is meant.
        rank, world_size: Of this process and of its job.
    Attributes:
        files: What the manifest lists, once it has been seen.
        share: Those that this rank looks at; all ranks together look at all.
    """

    def __init__(self, folder: Path, manifest: str, rank: int, world_size: int):
        self.folder = folder
        self.manifest = manifest
        self.rank, self.world_size = rank, world_size
        self.files: dict[str, FileEntry] = {}
        self.share: list[str] = []

    def look(self) -> tuple[str, str]:
        """What this rank sees instead of what it should, and the name of the file if it is not the manifest."""
        try:
            found = manifest_hash(self.folder)
            if found != self.manifest:
                return f"{self.folder / MANIFEST} has sha256 {found[:12]}...", ""
            if not self.files:
                self.files = listed_files(self.folder)
                self.share = share_of(self.files, self.rank, self.world_size)
        except FileNotFoundError:
            return f"{self.folder / MANIFEST} is missing", ""
        except (CheckpointError, OSError) as error:
            return str(error), ""
        return next(self.problems(self.share), ("", ""))

    def problems(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """(problem, name) of those of the files that are missing or of another size here."""
        for name in names:
            problem = size_problem(self.folder, name, self.files[name])
            if problem:
                yield problem, name


def share_of(files: Collection[str], rank: int, world_size: int) -> list[str]:
    """The files that a rank looks at: those that every rank reads, and its part of the others."""
    others = sorted(set(files).difference(READ_BY_ALL))
    return sorted([*set(files).intersection(READ_BY_ALL), *others[rank::world_size]])


def refuse_damaged(view: View, suspects: list[str]) -> None:
    """Lets rank 0 look at files that some rank does not see; collective.

    Args:
        view: Of this rank.
        suspects: At most one name of each rank.
    Raises:
        DamagedCheckpointError: on every rank, if rank 0 does not see one of them either.
    """
    problem = None
    if rank_of_job() == 0:
        problem = next((problem for problem, _ in view.problems(suspects)), None)
    problem = broadcast(problem, TEXT_OR_NONE)
    if problem is not None:
        raise DamagedCheckpointError(problem)


def verify_share(view: View) -> None:
    """Reads this rank's share of the files, and all ranks hear what any of them finds; collective.

    Raises:
        DamagedCheckpointError: on every rank, if the bytes of a file are not those of the manifest.
    """
    folder, files = view.folder, view.files
    try:
        with failing_together():
            check_read_by_all(folder, files)
            verify_files(folder, files, view.share)
    except CheckpointError as error:
        raise DamagedCheckpointError(str(error)) from error


def check_read_by_all(folder: Path, files: Collection[str]) -> None:
    """Looks at the small files that every rank will read: odd content is damage like any other.

    Raises:
        CheckpointError: if the manifest does not list one of them, or one is not what it should be.
    """
    for name in READ_BY_ALL:
        if name not in files:
            raise CheckpointError(f"{folder}: its manifest does not list {name}; the checkpoint cannot be trusted")
    CheckpointState.read(folder)
    check_format(folder)


def manifest_hash(folder: Path) -> str:
    """The sha256 of a checkpoint's manifest, in hexadecimal."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def agree_on_weights(
    source: Path, is_hf_folder: Callable[[Path], bool], patience_seconds: float | None = None, *, reads: bool = True
) -> bool:
    """Makes sure that all ranks start from the same weights; collective.

    Args:
        source: A checkpoint or a Hugging Face folder, at each rank's own path.
        is_hf_folder: Says which; rank 0's answer counts.
        patience_seconds: As of `agree_on`.
        reads: Whether this rank will read a Hugging Face folder itself; if not, it does not look at it. Rank 0 reads.
    Returns:
        Whether it is a Hugging Face folder.
    Raises:
        CheckpointError: as of `agree_on`.
    """
    expected = None
    with failing_together():
        if rank_of_job() == 0 and is_hf_folder(source):
            expected = folder_fingerprint(source)
    expected = broadcast(expected, TEXT_OR_NONE)
    if expected is None:
        agree_on(source, patience_seconds)
        return False

    def looks() -> str:
        if not reads or rank_of_job() == 0:
            return ""
        try:
            return "" if folder_fingerprint(source) == expected else f"{source} holds other files"
        except OSError as error:
            return str(error)

    wait_together(looks, f"{source} as rank 0 sees it", patience_seconds)
    return True


def wait_together(looks: Seen, what: str, patience_seconds: float | None) -> None:
    """Waits until every rank sees something; collective.

    Args:
        looks: What this rank sees instead; empty once it sees what it should. No collective.
        what: What is to be seen, for the message.
        patience_seconds: How long; None for `PATIENCE_SECONDS`.
    Raises:
        UnseenCheckpoint: on every rank, naming ranks and hosts that have waited in vain.
    """
    patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    deadline = time.monotonic() + patience
    instead = looks()
    while instead and time.monotonic() < deadline:
        time.sleep(min(PAUSE_SECONDS, patience))
        instead = looks()
    everyone = all_gather([socket.gethostname(), instead], list_of(of_type(str), length=2))
    blind = [f"rank {rank} ({host}): {found}" for rank, (host, found) in enumerate(everyone) if found]
    if blind:
        more = f"; and {len(blind) - TOLD} more" if len(blind) > TOLD else ""
        raise UnseenCheckpoint(
            f"{what}: not seen within {patience:g} s by {'; '.join(blind[:TOLD])}{more}. All nodes must see the same "
            "state of this folder: look at its mount there, then start again"
        )


def agree_on_counters(where: str, counters: Mapping[str, int]) -> None:
    """The last look before training: every rank stands at the same step; collective.

    Raises:
        CheckpointError: on every rank, naming the ranks that stand elsewhere than rank 0.
    """
    everyone = all_gather(dict(counters), dict_of(of_type(int)))
    odd = [f"rank {rank} {words(found)}" for rank, found in enumerate(everyone) if found != everyone[0]]
    if odd:
        raise CheckpointError(
            f"{where}: ranks stand at different places after loading: rank 0 {words(everyone[0])}, {', '.join(odd)}; "
            "nothing has been trained. Make sure that all nodes see the same files, and start again"
        )


def words(counters: Mapping[str, int]) -> str:
    """Counters as `name=value`, for messages."""
    return " ".join(f"{name}={value}" for name, value in counters.items())


def rank_of_job() -> int:
    """This process's rank; 0 where no job has been joined."""
    return dist.get_rank() if dist.is_initialized() else 0


def folder_fingerprint(folder: Path) -> str:
    """Of config.json, the index and the weights in a Hugging Face folder: their sizes, first and last bytes.

    Weights that differ do so everywhere; reading all of them on every rank would take too long.

    Raises:
        OSError: if the folder or a file cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = [folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.index.json")]
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            digest.update(f"{path.name} {size}\n".encode())
            for start in (0, max(0, size - END_BYTES)):
                stream.seek(start)
                digest.update(stream.read(END_BYTES))
    return digest.hexdigest()
