"""Small compressed files of much text, written without compressing all of it."""

import struct
import zlib


def gzip_bomb(head: bytes, megabytes: int, tail: bytes) -> bytes:
    """gzip of `head`, so many megabytes of one letter, and `tail`; each megabyte the same block of the stream."""
    compressor = zlib.compressobj(9, wbits=-15)
    first = compressor.compress(head) + compressor.flush(zlib.Z_FULL_FLUSH)
    letters = b"x" * 2**20
    block = compressor.compress(letters) + compressor.flush(zlib.Z_FULL_FLUSH)
    last = compressor.compress(tail) + compressor.flush()
    checksum = zlib.crc32(head)
    for _ in range(megabytes):
        checksum = zlib.crc32(letters, checksum)
    checksum = zlib.crc32(tail, checksum)
    size = len(head) + megabytes * 2**20 + len(tail)
    header = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x02\xff"
    return b"".join([header, first, block * megabytes, last, struct.pack("<II", checksum, size)])
