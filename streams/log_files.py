"""Log files as producers write them: unpacked, cut into messages, their format and columns told by what they hold.

Reading streams: whatever a compressed file unpacks to, no more than one message and one block are in memory.
"""

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import msgspec
import pyarrow as pa

from schemas.errors import ConfigurationError
from streams.result import short
from streams.sources.registry import format_of_file, source_format, split_spelling

MAX_LINE_BYTES = 4 * 1024 * 1024
"""A longer line, or JSON value, is pushed cut off, so that it becomes one dead letter."""
CUT_BYTES = 64 * 1024
ARROW_ROWS = 1_000
"""Rows of an Arrow file that make one message."""
_BLOCK_BYTES = 1 << 18
_HEAD_BYTES = 1 << 16
"""Of a file, unpacked: what tells its format, its columns, and whether it is read by lines."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""Of a frame that holds no data, behind a byte from 0x50 to 0x5f: parallel compressors begin with one."""
_ARROW_STARTS = (b"ARROW1", b"\xff\xff\xff\xff")
_ARROW_SUFFIXES = frozenset({".arrow", ".arrows", ".ipc", ".feather"})
_LINE_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_PACKED_SUFFIXES = frozenset({".gz", ".zst", ".zstd"})


@dataclass(frozen=True, slots=True)
class FileMessage:
    """One message to be pushed.

    Attributes:
        records: how many flows it holds, as far as the file says.
        read_bytes: how much of the file has been read, as it lies on disk.
    """

    value: bytes
    records: int
    read_bytes: int


def read_file(path: Path, format_name: str = "canonical") -> Iterator[FileMessage]:
    """Read a file message by message: Arrow in batches, JSON that is not one record a line value by value, else lines.

    Compression, Arrow and JSON are told by the first bytes; names decide where those do not.

    Raises:
        ConfigurationError: the file cannot be read, or the format does not exist.
    """
    source_format(format_name)
    head = head_of(path)
    try:
        with path.open("rb") as raw:
            stream = _unpacked(raw)
            layout = _layout(head, _suffix(path))
            if layout == "arrow":
                messages = _arrow_messages(stream, path)
            elif layout == "values":
                messages = ((value, 1) for value in _json_values(stream))
            else:
                messages = ((line, 1) for line in _lines(stream))
            for value, records in messages:
                yield FileMessage(value, records, raw.tell())
    except (OSError, EOFError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file, unpacked.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        with path.open("rb") as raw:
            return _unpacked(raw).read(_HEAD_BYTES)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def shape_of(path: Path) -> tuple[str, str]:
    """Return how a file is packed (``gzip``, ``zstd``, ``plain``) and read (``arrow``, ``values``, ``lines``).

    Raises:
        ConfigurationError: the file cannot be read.
    """
    head = head_of(path)
    with path.open("rb") as raw:
        return _packing(raw.read(4)), _layout(head, _suffix(path))


def format_for(path: Path, spelling: str) -> str:
    """Return how to spell the format for this file: ``auto`` recognised, columns as its first lines name them.

    Raises:
        ConfigurationError: the file cannot be read, the format does not exist, or is not recognised.
    """
    source_format(spelling)
    try:
        return format_of_file(spelling, head_of(path))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path.name}: {error}") from error


def holds_tenants(spelling: str) -> bool:
    """Say whether flows of a format can name their tenant: those of producers cannot."""
    return source_format(spelling).name.startswith("canonical")


class ColumnsWatch:
    """Watches that the columns that a file's first lines name stay: each line is a message, and knows no others.

    Lines after another header would be rejected at best; with as many columns in another order, misread.
    """

    def __init__(self, path: Path, spelling: str) -> None:
        name, arguments = split_spelling(spelling)
        self._named_in: Any = getattr(source_format(name), "for_file", None)
        self._name = path.name
        self._seen = 0
        self._first = {} if self._named_in is None else dict(self._named_in(head_of(path)))
        if any(arguments.get(key) != value for key, value in self._first.items()):
            self._first = {}  # other columns were told: headers say nothing

    def check(self, values: Sequence[bytes], *, has_headers: bool) -> None:
        """Look at the next messages.

        Raises:
            ConfigurationError: one of them names other columns.
        """
        if has_headers and self._first:
            for number, value in enumerate(values, start=self._seen + 1):
                named = self._named_in(value)
                if named and named != self._first:
                    raise ConfigurationError(
                        f"{self._name}: the columns change at record {number}: part the file there"
                    )
        self._seen += len(values)


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{path} cannot be read: {short(getattr(error, 'strerror', None) or str(error))}")


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    packing = _packing(raw.read(4))
    raw.seek(0)
    if packing == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if packing == "zstd":
        unpacked = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        return cast(IO[bytes], io.BufferedReader(unpacked, _BLOCK_BYTES))
    return raw


def _packing(magic: bytes) -> str:
    if magic.startswith(_GZIP):
        return "gzip"
    is_zstd = magic == _ZSTD or (magic[1:] == _ZSTD_SKIPPABLE and 0x50 <= magic[0] <= 0x5F)
    return "zstd" if is_zstd else "plain"


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _layout(head: bytes, suffix: str) -> Literal["arrow", "values", "lines"]:
    """Return how a file is cut into messages.

    JSON is read value by value where no line of its head is an object: a line that is damaged then costs one record
    and not, as among values, all that follow it.
    """
    if suffix in _ARROW_SUFFIXES or head.startswith(_ARROW_STARTS):
        return "arrow"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if suffix in _LINE_SUFFIXES or text[:1] not in (b"{", b"["):
        return "lines"
    if text[:1] == b"[":
        return "values" if suffix == ".json" or text[1:].lstrip()[:1] in (b"{", b"]") else "lines"
    lines = text.split(b"\n")
    if len(lines) == 1 and len(head) == _HEAD_BYTES:  # cut off before its end
        return "values" if suffix == ".json" else "lines"
    return "lines" if any(line[:1] == b"{" and _is_json(line) for line in lines) else "values"


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_LINE_BYTES)
            line = line[:CUT_BYTES]
        line = line.strip()
        if line:
            yield line


def _json_values(stream: IO[bytes]) -> Iterator[bytes]:
    """Return the elements of an array, or values that follow each other, one at a time."""
    decoder = json.JSONDecoder()
    text = io.TextIOWrapper(cast(Any, stream), encoding="utf-8", errors="surrogateescape")
    buffer, at, is_over = "", 0, False
    while True:
        while at < len(buffer) and buffer[at] in " \t\r\n,[]\ufeff":  # the outer array and what separates its elements
            at += 1
        end = at
        if at < len(buffer):
            try:
                _, end = decoder.raw_decode(buffer, at)
            except (json.JSONDecodeError, RecursionError):
                pass  # cut off by the end of the block, or no JSON at all
        if end > at and (end < len(buffer) or is_over):
            yield buffer[at:end].encode(errors="surrogateescape")
            at = end
            continue
        if is_over or len(buffer) - at > MAX_LINE_BYTES:
            if at < len(buffer):  # what cannot be told apart any more becomes one dead letter
                yield buffer[at : at + CUT_BYTES].encode(errors="surrogateescape")
            return
        block = text.read(max(_BLOCK_BYTES, len(buffer) - at))
        is_over = not block
        buffer, at = buffer[at:] + block, 0


def _arrow_messages(stream: IO[bytes], path: Path) -> Iterator[tuple[bytes, int]]:
    head = stream.read(6)
    if head == b"ARROW1":
        if not isinstance(stream, io.BufferedReader) or isinstance(stream.raw, pa.NativeFile):
            raise ConfigurationError(f"{path}: unpack it first, or write the Arrow stream format")
        reader = pa.ipc.open_file(stream)
        batches: Iterable[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = pa.ipc.open_stream(pa.PythonFile(_Rejoined(head, stream), mode="r"))
    for batch in batches:
        for start in range(0, batch.num_rows, ARROW_ROWS):
            rows = batch.slice(start, ARROW_ROWS)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_batch(rows)
            yield sink.getvalue().to_pybytes(), rows.num_rows


class _Rejoined(io.RawIOBase):
    """A stream with bytes put back in front."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return self._take_head(len(self._head)) + self._stream.read()
        head = self._take_head(size)
        return head + self._stream.read(size - len(head)) if len(head) < size else head

    def _take_head(self, size: int) -> bytes:
        taken, self._head = self._head[:size], self._head[size:]
        return taken
