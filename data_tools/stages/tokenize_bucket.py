"""Documents of neighbouring ranges of keys out of every run, in corpus order: as much of them as lies in a window."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_tools.corpus.document_order import ordered_pieces
from data_tools.stages.tokenize_runs import ENTRY, PAGE_TOKENS, Runs, room_for, tokens_around
from data_tools.tokenizer.qwen import END_OF_DOCUMENT

# A longer document that is alone in its slice of a run is copied from there, not held in memory.
_LARGE_TOKENS = 1024 * 1024
_PIECE_TOKENS = 2 * 1024 * 1024


class Bucket:
    """The entries of some ranges of keys, sorted, and the tokens of all but very long documents.

    Documents that end before a window of the corpus, or begin behind it, are left where they are.
    """

    def __init__(
        self, runs: Runs, slices: Sequence[tuple[int, npt.NDArray[np.void]]], first: int, window: tuple[int, int]
    ) -> None:
        """Reads the entries.

        Args:
            runs: the runs.
            slices: of each run its number, its first place and the one after its last.
            first: token of the corpus with which the ranges begin.
            window: tokens of the corpus, the first one and the one after the last.
        """
        self._runs = runs
        self._window = window
        parts = [runs.entries(run, int(places["entry"][0]), int(places["entry"][1])) for run, places in slices]
        entries = np.concatenate([np.empty(0, dtype=ENTRY), *parts])
        # With the end token.
        lengths = entries["length"].astype(np.int64) + 1
        order = np.lexsort((entries["offset"], entries["file"], entries["key"]))
        stops = first + np.cumsum(lengths[order])
        self.stop = int(stops[-1]) if len(stops) else first
        inside = slice(
            int(np.searchsorted(stops, window[0], side="right")),
            int(np.searchsorted(stops - lengths[order], window[1], side="left")),
        )
        self._lengths = np.ascontiguousarray(entries["length"])
        self._order = order[inside]
        self._stops = stops[inside]
        self._large: dict[int, tuple[int, int]] = {}  # entry -> run, first token
        self._reads: list[tuple[int, int, int]] = []  # run, first token, tokens
        self._places = np.full(len(entries), -1, dtype=np.int64)  # of tokens in memory
        is_wanted = np.zeros(len(entries), dtype=bool)
        is_wanted[self._order] = True
        self._num_tokens = num_entries = 0
        for (run, places), part in zip(slices, parts, strict=True):
            entry, num_entries = num_entries, num_entries + len(part)
            # In a row, for a slice is in the order of the corpus.
            wanted = entry + is_wanted[entry:num_entries].nonzero()[0]
            if not len(wanted):
                continue
            before = np.cumsum(lengths[entry:num_entries]) - lengths[entry:num_entries]
            token = int(places["token"][0]) + before
            begin, count = int(token[wanted[0] - entry]), int(lengths[wanted].sum())
            if len(wanted) == 1 and count > _LARGE_TOKENS:
                self._large[int(wanted[0])] = (run, begin)
                continue
            self._reads.append((run, begin, count))
            self._places[wanted] = self._num_tokens + token[wanted - entry] - begin + begin % PAGE_TOKENS
            self._num_tokens += tokens_around(begin, count)

    def lengths(self) -> npt.NDArray[np.int32]:
        """[documents] int32 tokens of each document that begins in the window, in corpus order, with its end token."""
        lengths = self._lengths[self._order] + np.int32(1)
        return lengths[self._stops - lengths >= self._window[0]]

    def pieces(self) -> Iterator[memoryview]:
        """The bytes of the window that are these documents', each of which is followed by its end token."""
        tokens = self._read_tokens()
        large = np.isin(self._order, list(self._large)).nonzero()[0].tolist()
        for begin, stop in zip([0, *(place + 1 for place in large)], [*large, len(self._order)], strict=True):
            if begin < stop:
                # The documents of runs have their end tokens already; the kernel writes each anew.
                found = ordered_pieces([tokens], self._places, self._lengths, self._order[begin:stop], END_OF_DOCUMENT)
                yield from self._clipped(self._start_of(begin), found)
            if stop < len(self._order):
                yield from self._large_document(stop)

    def _start_of(self, number: int) -> int:
        """Token of the corpus with which a document of `_order` begins."""
        return int(self._stops[number]) - int(self._lengths[self._order[number]]) - 1

    def _clipped(self, position: int, pieces: Iterator[npt.NDArray[np.int32]]) -> Iterator[memoryview]:
        for piece in pieces:
            begin, stop = (min(max(place - position, 0), len(piece)) for place in self._window)
            position += len(piece)
            if begin < stop:
                yield piece[begin:stop].data.cast("B")

    def _large_document(self, number: int) -> Iterator[memoryview]:
        run, token = self._large[int(self._order[number])]
        start = self._start_of(number)
        first = token + max(self._window[0] - start, 0)
        stop = token + min(int(self._stops[number]), self._window[1]) - start
        room = room_for(tokens_around(0, _PIECE_TOKENS) + PAGE_TOKENS)
        for begin in range(first, stop, _PIECE_TOKENS):
            count = min(_PIECE_TOKENS, stop - begin)
            self._runs.read_tokens(run, begin, count, room[: tokens_around(begin, count)])
            yield room[begin % PAGE_TOKENS :][:count].data.cast("B")

    def _read_tokens(self) -> npt.NDArray[np.int32]:
        tokens = room_for(self._num_tokens)
        position = 0
        for run, begin, count in self._reads:
            size = tokens_around(begin, count)
            self._runs.read_tokens(run, begin, count, tokens[position : position + size])
            position += size
        return tokens
