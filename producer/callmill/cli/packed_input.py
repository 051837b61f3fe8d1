"""Packed input: what is compressed is unpacked while it is read, and UTF-16 becomes UTF-8."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from typing import BinaryIO, Protocol, cast

from callmill.errors import InputFileError

_BUFFER_BYTES = 1024 * 1024
_LONGEST_MAGIC = 6
_UTF_16 = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"{\0", "utf-16-le"), (b"\0{", "utf-16-be"))

DamagedError = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, UnicodeDecodeError)
"""What reading raises where the data are not what their beginning says."""


class LineSource(Protocol):
    """What lines are read from."""

    def read(self, size: int, /) -> bytes:
        """Return so many bytes (of UTF-16: characters), fewer at the end."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line, or so much of it; empty at the end."""


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


def _decompressed(file: BinaryIO) -> io.BufferedReader:
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", file))
    magic = buffered.peek(_LONGEST_MAGIC)
    if magic.startswith(b"\x1f\x8b"):
        return io.BufferedReader(gzip.GzipFile(fileobj=buffered), _BUFFER_BYTES)
    if magic.startswith(b"BZh"):
        return io.BufferedReader(bz2.BZ2File(buffered), _BUFFER_BYTES)
    if magic.startswith(b"\xfd7zXZ\0"):
        return io.BufferedReader(lzma.LZMAFile(buffered), _BUFFER_BYTES)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_zstandard(buffered), _BUFFER_BYTES)
    return buffered


def _zstandard(file: io.BufferedReader) -> io.RawIOBase:
    try:
        import zstandard  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise InputFileError(
            "is compressed with Zstandard: install callmill[zstd], or decompress it before (zstd -dc FILE | ...)"
        ) from error
    reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return cast("io.RawIOBase", _ZstandardFile(reader))


class _ZstandardFile(io.RawIOBase):
    """A reader of Zstandard whose errors are those of damaged data."""

    def __init__(self, reader: BinaryIO) -> None:
        self._reader = reader

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any buffer, of which this is one
        """Fill the buffer as far as there is something."""
        import zstandard  # noqa: PLC0415 - as above

        try:
            content = self._reader.read(len(buffer))
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        buffer[: len(content)] = content
        return len(content)


class _Recoded:
    """Lines of UTF-16 in UTF-8; half a character stays one, and makes its line a bad one."""

    def __init__(self, file: io.BufferedReader, encoding: str) -> None:
        self._text = io.TextIOWrapper(file, encoding, errors="surrogatepass", newline="\n")

    def read(self, size: int, /) -> bytes:
        """Return so many characters."""
        return self._text.read(size).encode(errors="surrogatepass")

    def readline(self, limit: int, /) -> bytes:
        """Return a line, or so many characters of it."""
        return self._text.readline(limit).encode(errors="surrogatepass")
