"""Reading in a thread of its own, a little ahead of who works on what was read."""

import threading
from collections.abc import Generator, Iterator
from queue import Queue
from typing import TypeVar

Piece = TypeVar("Piece")


def read_ahead(pieces: Iterator[Piece], most: int = 8) -> Generator[Piece, None, None]:
    """Gives ``pieces``, of which a few are taken in advance: reading goes on beside the work on what was read.

    Whatever ``pieces`` raises is raised behind the last piece before it. When this iterator is closed, ``pieces`` is no
    longer in use.

    Args:
        pieces: made by the thread, each when there is room for it.
        most: as many wait for the reader; one more is being made.
    """
    queue: Queue[tuple[Piece] | BaseException | None] = Queue(most)
    closed = threading.Event()
    thread = threading.Thread(target=_work, args=(pieces, queue, closed), daemon=True)
    thread.start()
    try:
        while (found := queue.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found[0]
    finally:
        closed.set()
        while not queue.empty():
            queue.get()  # Makes room for what the thread may be waiting to put there.
        thread.join()


def _work(
    pieces: Iterator[Piece], queue: "Queue[tuple[Piece] | BaseException | None]", closed: threading.Event
) -> None:
    try:
        for piece in pieces:
            queue.put((piece,))
            if closed.is_set():
                return
        queue.put(None)
    except BaseException as error:  # noqa: BLE001  Whatever it is, the reader raises it.
        queue.put(error)
