"""Tasks on a Ray cluster. The folders of the pipeline must be on a file system that every node sees."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_tools.engine.task import Manifest, Task
from data_tools.errors import DataError

_IN_FLIGHT_PER_CPU = 2


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

    def run(self, tasks: Sequence[Task]) -> Iterator[Manifest]:
        """See `Executor.run`. A task whose node is lost is done again elsewhere, three times at most."""
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
            result = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise DataError(f"a task on Ray failed: {error}") from error
        if isinstance(result, DataError | OSError):
            raise result
        assert isinstance(result, Manifest)
        return result

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends."""
        self._ray.shutdown()


def _perform(task: Task) -> Manifest | DataError | OSError:
    from data_tools.engine.operations import perform

    try:
        return perform(task)
    except (DataError, OSError) as error:
        return error
