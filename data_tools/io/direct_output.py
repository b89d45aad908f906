"""Large outputs of tasks: past the page cache, and whole or not at all."""

import os
from pathlib import Path

from data_tools.io.atomic_file import temporary_file
from data_tools.io.direct_file import DirectFile
from data_tools.io.system_errors import naming


class DirectOutput:
    """A file under a temporary name, which `publish` gives it the name of; until then nothing changes there.

    Args:
        path: the file.
        num_blocks: of 4 MiB that are held; with one, `write` waits for the disk.
    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, path: Path, *, num_blocks: int = 2) -> None:
        self._path = path
        descriptor, self._temporary = temporary_file(path)
        os.close(descriptor)
        try:
            self._file = DirectFile(self._temporary, flags=os.O_NOFOLLOW, num_blocks=num_blocks)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise

    def write(self, view: memoryview) -> None:
        """Takes bytes, which may be changed afterwards; the disk need not have them yet.

        Raises:
            OSError: the disk could not take what was written before.
        """
        with naming(self._path):
            self._file.write(view)

    def publish(self) -> None:
        """Brings everything to the disk and gives the file its name, which a power cut may still take from it.

        Raises:
            OSError: the disk is full or fails; what was written is gone then.
        """
        try:
            with naming(self._path):
                self._file.finish()
            self._file.close()
            self._temporary.replace(self._path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
