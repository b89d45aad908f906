"""Reading in a thread of its own, a little ahead of who works on what was read."""

import threading
from collections.abc import Iterator
from queue import Queue

_MOST_PIECES = 8


def read_ahead(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Gives ``pieces``, of which a few are taken in advance: decompression goes on beside the work on them.

    Whatever ``pieces`` raises is raised behind the last piece before it. When this iterator is closed, ``pieces`` is no
    longer in use.
    """
    queue: Queue[bytes | BaseException | None] = Queue(_MOST_PIECES)
    closed = threading.Event()
    thread = threading.Thread(target=_work, args=(pieces, queue, closed), daemon=True)
    thread.start()
    try:
        while (piece := queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        closed.set()
        while not queue.empty():
            queue.get()  # Makes room for what the thread may be waiting to put there.
        thread.join()


def _work(pieces: Iterator[bytes], queue: "Queue[bytes | BaseException | None]", closed: threading.Event) -> None:
    try:
        for piece in pieces:
            queue.put(piece)
            if closed.is_set():
                return
        queue.put(None)
    except BaseException as error:  # noqa: BLE001  Whatever it is, the reader raises it.
        queue.put(error)
