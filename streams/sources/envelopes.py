"""Records that log shippers wrap: ``{"message": "..."}`` (Filebeat, Vector, Firehose) or ``{"log": "..."}``. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from streams.sources.json_records import FAILURES, Read

_NOTHING = msgspec.Raw()
_KEYS = (b'"message"', b'"log"')
_OBJECTS = (b'":"{', b'": "{')
_NOT_LINES = ("{", "[", "\0", "\ufeff")


class Envelope:
    """A shipper's record around a text.

    Args:
        required: keys of records that are not wrapped: what has them all is none of a shipper's.
        extra: fields of the decoded struct besides, as `msgspec.defstruct` takes them.
    """

    def __init__(self, required: Sequence[str] = (), extra: Sequence[tuple[str, Any, Any]] = ()) -> None:
        keys = [(f"key_{number}", msgspec.Raw, _NOTHING) for number in range(len(required))]
        wrapped = [("message", str | None, None), ("log", str | None, None)]
        envelope = msgspec.defstruct(
            "Envelope",
            [*wrapped, *keys, *extra],
            gc=False,
            rename={name: key for (name, _, _), key in zip(keys, required, strict=True)},
        )
        self._decode = msgspec.json.Decoder(envelope, strict=False).decode
        self._names = [name for name, _, _ in keys]

    def take_apart(self, value: bytes) -> tuple[str, Any]:
        """Return the text that a record wraps, and the record's struct.

        Raises `msgspec.DecodeError` for what is no JSON, wraps no text, or has all the required keys of a record that
        is not wrapped: no record can be read in two ways, whatever its neighbours are.
        """
        found: Any = self._decode(value)
        text = found.message if found.message is not None else found.log
        if text is None:
            raise msgspec.ValidationError("no message in the record")
        if self._names and all(bytes(getattr(found, name)) for name in self._names):
            raise msgspec.ValidationError("a record that is not wrapped")
        return text.strip(), found

    def leading(self, values: Iterable[bytes]) -> tuple[list[str], list[Any]]:
        """Return texts and structs of the first records, up to one that takes a closer look; texts are not stripped."""
        structs: list[Any] = []
        try:
            structs.extend(map(self._decode, values))  # keeps what it took before an error
        except FAILURES:
            pass
        texts = [found.log if found.message is None else found.message for found in structs]
        if None in texts:
            texts = texts[: texts.index(None)]
        if self._names:  # one of the keys may be all it takes
            first = self._names[0]
            odd = (n for n, found in enumerate(structs) if getattr(found, first) is not _NOTHING)
            texts = texts[: next(odd, len(texts))]
        return texts, structs[: len(texts)]

    def lines(self, values: Sequence[bytes]) -> list[Any]:
        """Return the lines of text that records wrap; ``None`` where one wraps something else or is none."""
        # Looked for as bytes first: most records are not wrapped, and those that are wrap JSON.
        one, other = _KEYS
        together = b"".join(values)
        if one not in together and other not in together:
            return [None] * len(values)
        may_be = [(one in v or other in v) and _OBJECTS[0] not in v and _OBJECTS[1] not in v for v in values]
        if not any(may_be):
            return [None] * len(values)
        if all(may_be):
            texts, _ = self.leading(values)
            found = list(map(_as_line, map(str.strip, texts)))
            return [*found, *map(self._line, values[len(found) :])]
        return [self._line(value) if is_it else None for value, is_it in zip(values, may_be, strict=True)]

    def _line(self, value: bytes) -> str | None:
        try:
            text, _ = self.take_apart(value)
        except FAILURES:
            return None
        return _as_line(text)


def _as_line(text: str) -> str | None:
    return text if text and not text.startswith(_NOT_LINES) and "\n" not in text else None


class Wrapped:
    """The decoder of records that a log shipper wrapped as text; ``required`` are keys of those not wrapped."""

    def __init__(self, read: Read, required: Sequence[str]) -> None:
        self._read = read
        self._envelope = Envelope(required)

    def __call__(self, value: bytes) -> Any:
        """Decode one record; raises as decoders do."""
        return self._read(self._envelope.take_apart(value)[0].encode())

    def leading(self, values: Sequence[bytes], start: int) -> tuple[int, Iterator[Any]]:
        """Return how many messages from ``start`` on can be decoded at once, and an iterator that decodes them."""
        texts, _ = self._envelope.leading(islice(values, start, None))
        return len(texts), map(self._read, texts)
