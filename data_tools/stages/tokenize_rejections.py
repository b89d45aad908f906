"""Which record of a user's file the encoder refused, where it was given a shard of what had been read before."""

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_tools.engine.document import Document, read_documents
from data_tools.engine.quarantine import BadRow, bad_rows
from data_tools.engine.task import Manifest, documents_file
from data_tools.errors import DataError
from data_tools.readers.record import LINE


class RejectionPlaces:
    """Gives for each task what it rejected, and for one that read also what the encoder refused of its documents.

    Args:
        read: tasks of the operation `read` that noted the line of each record.
        encoded: tasks that encoded their shards, and others.
    """

    def __init__(self, read: Sequence[Manifest], encoded: Sequence[Manifest]) -> None:
        shards = {str(part.path(documents_file(part.name))) for part in read}
        # Shard -> the task that encoded it, and the number of the shard among its inputs.
        self._encoded = {
            one["path"]: (part, number)
            for part in encoded
            for number, one in enumerate(part.inputs)
            if one["path"] in shards
        }

    def rows(self, manifest: Manifest) -> Iterator[BadRow]:
        """See `quarantine.write_quarantine`."""
        if any(one["path"] in self._encoded for one in manifest.inputs):
            return iter(())  # They come with the task that read.
        shard = manifest.path(documents_file(manifest.name))
        if str(shard) not in self._encoded:
            return bad_rows(manifest)
        return heapq.merge(bad_rows(manifest), self._refused(manifest, shard), key=lambda row: row[:2])

    def _refused(self, manifest: Manifest, shard: Path) -> Iterator[BadRow]:
        """By file and line of the user's; the rows of the encoder, and the documents, are in the order of the shard."""
        inputs = {one["path"]: number for number, one in enumerate(manifest.inputs)}
        for document, (_, _, reason, detail) in refused_documents(shard, *self._encoded[str(shard)]):
            path = document.id.rpartition("@")[0]
            yield inputs[path], int(document.metadata[LINE]), reason, detail


def refused_documents(shard: Path, encoded: Manifest, number: int) -> Iterator[tuple[Document, BadRow]]:
    """The documents of a shard that the encoder refused, with what it says of each.

    Args:
        shard: the file, which is read only if there are any.
        encoded: of the task that encoded it.
        number: of the shard among the task's inputs.
    Raises:
        DataError: the shard is damaged.
    """
    rows = (row for row in bad_rows(encoded) if row[0] == number) if encoded.rejected else iter(())
    row = next(rows, None)
    if row is None:
        return
    for line, document in enumerate(read_documents(shard), 1):
        if line == row[1]:
            yield document, row
            row = next(rows, None)
            if row is None:
                return
    raise DataError(f"{shard}: it has no line {row[1]} ({row[2]}, {row[3]}); it is damaged, delete it and run again")


def rows_with_ids(manifest: Manifest) -> Iterator[BadRow]:
    """What a task that encoded shards of a pipeline rejected, with the document's identity: file and place in it."""
    for number, one in enumerate(manifest.inputs):
        for document, (_, line, reason, detail) in refused_documents(Path(one["path"]), manifest, number):
            yield number, line, reason, f"{detail}; it is document {document.id}"
