"""Tasks on a Ray cluster. The folders of the pipeline must be on a file system that every node sees.

Documents do not pass through Ray's object store: what it cannot hold it spills to a disk of the node, and that is lost
with the node, where a file that was written once is found by whoever goes on. A result is the manifest of a task.
"""

import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data_tools.engine.executor import UnderWay
from data_tools.engine.task import Manifest, Task
from data_tools.errors import DataError

_IN_FLIGHT_PER_CPU = 2
# A network file system may show a new file so late.
_LATE_SECONDS = 120.0
_POLL_SECONDS = 0.5


class _Result(NamedTuple):
    """What a task gave, and where it was done."""

    node: str  # Ray's name
    host: str
    result: Manifest | DataError | OSError


class RayExecutor:
    """Runs tasks through Ray."""

    def __init__(self, address: str) -> None:
        """Connects to ``address`` ("auto", "host:port", "ray://host:port"), or starts Ray here for "local".

        Raises:
            DataError: Ray is not installed or there is no cluster at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise DataError("--ray-address needs Ray; in the checkout run: pip install -e '.[ray]'") from error
        self._ray = ray
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise DataError(f"--ray-address {address}: {error}") from error
        self._perform = ray.remote(num_cpus=1, max_retries=3)(_perform)
        self._seen_nodes: set[str] = set()

    def run(self, tasks: Sequence[Task], under_way: UnderWay | None = None) -> Iterator[Manifest]:
        """See `Executor.run`; of a task that is under way nothing is known.

        A task whose node is lost is done again elsewhere, three times at most.
        """
        del under_way
        limit = max(2, int(self._ray.cluster_resources().get("CPU", 1)) * _IN_FLIGHT_PER_CPU)
        waiting = list(reversed(tasks))
        pending: list[Any] = []
        try:
            while waiting or pending:
                while waiting and len(pending) < limit:
                    pending.append(self._perform.remote(waiting.pop()))
                done, pending = self._ray.wait(pending, num_returns=1)
                yield self._result(done[0])
        finally:
            for reference in pending:
                self._ray.cancel(reference)

    def _result(self, reference: Any) -> Manifest:
        try:
            node, host, result = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise DataError(f"a task on Ray failed: {error}") from error
        if isinstance(result, DataError | OSError):
            raise result
        assert isinstance(result, Manifest)
        if node not in self._seen_nodes:
            require_seen(result, host)
            self._seen_nodes.add(node)
        return result

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends."""
        self._ray.shutdown()


def require_seen(manifest: Manifest, host: str, wait_seconds: float = _LATE_SECONDS) -> None:
    """Lets pass a task whose files are seen here too.

    Args:
        manifest: of the task.
        host: where it was done.
        wait_seconds: how long to wait for them.
    Raises:
        DataError: they are not; the next tasks would not find what this one has made.
    """
    # Not the manifest, if there is something else: that it was not there yet may be remembered.
    path = manifest.path(next(iter(manifest.outputs), f"{manifest.name}.manifest.json"))
    deadline = time.monotonic() + wait_seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise DataError(
                f"{path}: was written on {host}, but is not seen on {socket.gethostname()}; on Ray all nodes must see "
                "the output, and the inputs, under the same path: put them on a file system that is mounted everywhere"
            )
        time.sleep(_POLL_SECONDS)


def _perform(task: Task) -> _Result:
    import ray

    from data_tools.engine.operations import perform

    node, host = ray.get_runtime_context().get_node_id(), socket.gethostname()
    try:
        return _Result(node, host, perform(task))
    except (DataError, OSError) as error:
        return _Result(node, host, error)
