"""Packed input: what is compressed is unpacked while it is read, and UTF-16 becomes UTF-8; output is never packed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from callmill.errors import InputFileError, UsageError

_BUFFER_BYTES = 1024 * 1024
_LONGEST_MAGIC = 6
_ZSTANDARD_PART_BYTES = 1024
"""So much may unpack to 32 MiB."""
_UTF_16 = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b'{\0"\0', "utf-16-le"), (b'\0{\0"', "utf-16-be"))

_PACKERS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}

DamagedError = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, UnicodeDecodeError)
"""What reading raises where the data are not what their beginning says."""


class LineSource(Protocol):
    """What lines are read from."""

    def read(self, size: int, /) -> bytes:
        """Return so many bytes (of UTF-16: characters), fewer at the end."""
        ...

    def readline(self, limit: int, /) -> bytes:
        """Return the next line, or so much of it; empty at the end."""
        ...


class _Peekable(LineSource, Protocol):
    """A source whose beginning can be looked at."""

    def peek(self, size: int, /) -> bytes:
        """Return at least so many bytes without taking them, fewer at the end."""
        ...


def unpacked(file: BinaryIO) -> LineSource:
    """Return what gives the lines of a file in UTF-8, whatever it is compressed with: gzip, bzip2, xz or Zstandard.

    Raises:
        InputFileError: It is compressed with what this installation cannot read.
    """
    plain = _decompressed(file)
    for mark, encoding in _UTF_16:
        if plain.peek(len(mark)).startswith(mark):
            return _Recoded(plain, encoding)
    return plain


def refuse_packed_name(option: str, path: Path) -> None:
    """Refuse an output whose name promises what is not written.

    Raises:
        UsageError: It is named like a compressed file.
    """
    if packer := _PACKERS.get(path.suffix.lower()):
        raise UsageError(
            f"{option} {path}: lines are written uncompressed: leave out {path.suffix}, "
            f"or compress a stream of them: ... | {packer} > {path.name}"
        )


def _decompressed(file: BinaryIO) -> _Peekable:
    magic = cast("_Peekable", file).peek(_LONGEST_MAGIC)
    if magic.startswith(b"\x1f\x8b"):
        return io.BufferedReader(gzip.GzipFile(fileobj=file), _BUFFER_BYTES)
    if magic.startswith(b"BZh"):
        return io.BufferedReader(bz2.BZ2File(file), _BUFFER_BYTES)
    if magic.startswith(b"\xfd7zXZ\0"):
        return io.BufferedReader(lzma.LZMAFile(file), _BUFFER_BYTES)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_zstandard(file), _BUFFER_BYTES)
    return cast("_Peekable", file)


def _zstandard(file: BinaryIO) -> io.RawIOBase:
    try:
        import zstandard  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise InputFileError(
            "is compressed with Zstandard: install callmill[zstd], or decompress it before (zstd -dc FILE | ...)"
        ) from error
    return _ZstandardFile(file, zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError)


class _Frame(Protocol):
    """What unpacks one frame of Zstandard."""

    @property
    def eof(self) -> bool:
        """Whether its end has come."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What came behind its end."""
        ...

    def decompress(self, data: bytes, /) -> bytes:
        """Return what a part unpacks to."""
        ...


class _ZstandardFile(io.RawIOBase):
    """Frames of Zstandard, one behind the other; the library's reader takes a file that is cut off for a whole one."""

    def __init__(self, file: BinaryIO, new_frame: Callable[[], _Frame], damaged: type[BaseException]) -> None:
        self._file, self._new_frame, self._damaged = file, new_frame, damaged
        self._frame: _Frame | None = None
        self._packed, self._plain = b"", memoryview(b"")

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any buffer, of which this is one
        """Fill the buffer as far as there is something."""
        while not self._plain:
            if not (packed := self._packed or self._file.read(_ZSTANDARD_PART_BYTES)):
                if self._frame is not None:
                    raise EOFError("compressed file ended before the end of a frame was reached")
                return 0
            self._frame = self._frame or self._new_frame()
            try:
                self._plain = memoryview(self._frame.decompress(packed))
            except self._damaged as error:
                raise EOFError(str(error)) from error
            self._packed = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size


class _Recoded:
    """Lines of UTF-16 in UTF-8; half a character stays one, and makes its line a bad one."""

    def __init__(self, file: _Peekable, encoding: str) -> None:
        self._text = io.TextIOWrapper(cast("BinaryIO", file), encoding, errors="surrogatepass", newline="\n")

    def read(self, size: int, /) -> bytes:
        """Return so many characters."""
        return self._text.read(size).encode(errors="surrogatepass")

    def readline(self, limit: int, /) -> bytes:
        """Return a line, or so many characters of it."""
        return self._text.readline(limit).encode(errors="surrogatepass")
