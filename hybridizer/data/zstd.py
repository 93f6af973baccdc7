"""Reading .zst files: the package zstandard takes the end of a cut-off file for the end of the text, and we do not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 2**20


def open_zstandard(path: Path) -> BinaryIO:
    """The text of `path`, of all its frames, as a binary file. Reading raises OSError when it is damaged or cut off."""
    return io.BufferedReader(_Pieces(_decompressed(path)))


def _decompressed(path: Path) -> Iterator[bytes]:
    import zstandard

    decoder = zstandard.ZstdDecompressor().decompressobj()
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            while data:
                if decoder.eof:  # another frame follows
                    decoder = zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield decoder.decompress(data)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from error
                data = decoder.unused_data if decoder.eof else b""
    if not decoder.eof:
        raise OSError("it ends in the middle of a frame")


class _Pieces(io.RawIOBase):
    """An iterator of bytes as a raw file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from what comes next; 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        """Close the file below as well."""
        if not self.closed and hasattr(self._pieces, "close"):
            self._pieces.close()
        super().close()
