"""Pieces of one task's work that idle threads of its executor do: a single file then keeps all of them busy."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Generic, TypeVar, cast

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Pieces begun in advance for each idle thread: while the task is busy with something else, it has one more to do.
_PIECES_AHEAD = 2


class _Piece(Generic[_Item, _Result]):
    """A call of a function, by whoever claims it first."""

    def __init__(self, function: Callable[[_Item], _Result], item: _Item) -> None:
        self._function = function
        self._item: _Item | None = item
        self._claim = threading.Lock()
        self._done = threading.Event()
        self._result: _Result | None = None
        self._error: BaseException | None = None

    def claim(self) -> bool:
        """Whether the caller is the one who does it, or sees that nobody does."""
        return self._claim.acquire(blocking=False)

    def do(self) -> None:
        """Calls the function, once."""
        try:
            self._result = self._function(cast(_Item, self._item))
        except BaseException as error:  # noqa: BLE001  Whatever it is, whose piece it is raises it.
            self._error = error
        self._item = None
        self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def end(self) -> None:
        """Waits until it is done."""
        self._done.wait()

    def wait(self) -> _Result:
        """What the function returned or raised, when it is done."""
        self.end()
        if self._error is not None:
            raise self._error
        return cast(_Result, self._result)


class WorkSharing:
    """The threads of an executor: those that have run out of tasks do pieces of the others' tasks."""

    def __init__(self, num_working: int) -> None:
        """``num_working`` threads have tasks to do; each says by `help_others` that it has none any more."""
        self._changed = threading.Condition()
        self._offered: deque[_Piece[object, object]] = deque()
        self._num_working = num_working
        self._num_idle = 0

    def help_others(self) -> None:
        """Does pieces of others until nobody has a task any more."""
        with self._changed:
            self._num_working -= 1
            self._num_idle += 1
            self._changed.notify_all()
        while (piece := self._next_offered()) is not None:
            if piece.claim():
                piece.do()

    def in_order(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """``function`` of each item, in the order of the items.

        The calling thread does what no idle thread does. Items are taken a few ahead, and only by the calling thread.
        What ``function`` raises is raised in the place of its result.
        """
        pending: deque[_Piece[_Item, _Result]] = deque()
        try:
            for item in items:
                pending.append(self._offered_piece(function, item))
                while len(pending) > _PIECES_AHEAD * self._num_idle:
                    yield _first_of(pending)
            while pending:
                yield _first_of(pending)
        finally:
            # After an error: nobody works for this task when it has ended.
            for piece in pending:
                if not piece.claim():
                    piece.end()

    def _offered_piece(self, function: Callable[[_Item], _Result], item: _Item) -> _Piece[_Item, _Result]:
        piece = _Piece(function, item)
        if self._num_idle:
            with self._changed:
                self._offered.append(cast("_Piece[object, object]", piece))
                self._changed.notify()
        return piece

    def _next_offered(self) -> _Piece[object, object] | None:
        with self._changed:
            while self._num_working and not self._offered:
                self._changed.wait()
            return self._offered.popleft() if self._offered else None


def _first_of(pending: deque[_Piece[_Item, _Result]]) -> _Result:
    """Removes the first piece; does others as long as another thread is busy with it."""
    first = pending.popleft()
    if first.claim():
        first.do()
    while not first.is_done:
        unclaimed = next((piece for piece in pending if piece.claim()), None)
        if unclaimed is None:
            break
        unclaimed.do()
    return first.wait()


_CURRENT: ContextVar[WorkSharing | None] = ContextVar("work_sharing", default=None)


def work_sharing() -> WorkSharing:
    """That of the executor whose thread this is; elsewhere one without idle threads."""
    return _CURRENT.get() or WorkSharing(1)


def share_work(sharing: WorkSharing) -> None:
    """Makes ``sharing`` that of this thread."""
    _CURRENT.set(sharing)
