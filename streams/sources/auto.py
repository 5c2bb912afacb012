"""``auto``: takes the first format that knows a record, says which, and keeps to it. Pure but for that memory.

A message is known by a format that rejects nothing of it. Until one is found, what nobody knows is rejected; from then
on the format taken judges alone, so that a record of another format is a dead letter and not a guess. A worker that
starts anew recognises anew; what is in `tenant-log` by then stays as it is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from schemas.dead_letter import Reason
from schemas.errors import ConfigurationError
from streams.result import WHOLE_MESSAGE, Refusal, Rejected
from streams.sources.format import Decoded, SourceFormat
from streams.sources.json_records import split_records, wire_prefix

_LINES_OF_HEAD = 200
_LARGEST_LINE_BYTES = 1 << 16
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")


def claims(candidate: SourceFormat, value: bytes) -> tuple[int, int]:
    """Return how many flows, and how many other records, a format finds in a message; (0, 0) if it rejects any."""
    decoded = candidate.decode([value])
    if decoded.rejected:
        return 0, 0
    return sum(len(run.message) for run in decoded.runs), decoded.skipped.total()


def recognise(candidates: Mapping[str, SourceFormat], value: bytes) -> str | None:
    """Return the name of the format that a message is of: one that finds flows, else one that knows what else it is."""
    if wire_prefix(value) is not None:
        return None
    found = {name: claims(candidate, value) for name, candidate in candidates.items()}
    with_flows = [name for name, (flows, _) in found.items() if flows]
    known = with_flows or [name for name, (_, others) in found.items() if others]
    return known[0] if known else None


def recognised_in(candidates: Mapping[str, SourceFormat], head: bytes) -> str:
    """Return the name of the format of a file whose first bytes are ``head``.

    Raises:
        ConfigurationError: no format knows any of its first records.
    """
    if head.startswith(_ARROW):
        return "canonical"
    whole = recognise(candidates, head)
    lines = [line for line in head.split(b"\n")[:_LINES_OF_HEAD] if line.strip()]
    found = Counter(name for name in (recognise(candidates, line) for line in lines) if name is not None)
    if not found and whole is None and head.lstrip().startswith(b"["):
        found = Counter(filter(None, (recognise(candidates, piece) for piece in _first_elements(head))))
    if whole is not None:
        return whole
    if not found:
        raise ConfigurationError("the format of the file cannot be told from its first records: name it")
    return found.most_common(1)[0][0]


def _first_elements(head: bytes) -> list[bytes]:
    """Return the elements of an array that is cut off, as far as they are one a line or whole at the start."""
    for stop in range(len(head), 0, -1):
        if head[stop - 1 : stop] == b"}":
            try:
                return split_records(head[:stop] + b"]")[:_LINES_OF_HEAD]
            except Refusal:
                continue
    return []


class Auto:
    """A format that becomes one of ``candidates`` with the first message that any of them knows.

    Attributes:
        chosen: the name of the format taken, or ``None``.
    """

    def __init__(self, candidates: Mapping[str, SourceFormat]) -> None:
        self._candidates = candidates
        self.chosen: str | None = None

    @property
    def name(self) -> str:
        """Return ``auto``, or ``auto:NAME`` once a format is taken."""
        return "auto" if self.chosen is None else f"auto:{self.chosen}"

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        start = 0
        rejected: list[Rejected] = []
        while self.chosen is None and start < len(values):
            value = values[start]
            self.chosen = recognise(self._candidates, value)
            if self.chosen is None:
                reason, detail = _unknown(value)
                rejected.append(Rejected(start, WHOLE_MESSAGE, reason, detail, value))
                start += 1
        if self.chosen is None:
            return Decoded([], rejected)
        decoded = self._candidates[self.chosen].decode(values[start:] if start else values)
        if not start:
            return decoded
        for run in decoded.runs:
            run.message = run.message + start
        rejected.extend(replace(bad, message=bad.message + start) for bad in decoded.rejected)
        signals = [replace(signal, message=signal.message + start) for signal in decoded.signals]
        return Decoded(decoded.runs, rejected, decoded.skipped, signals)


def _unknown(value: bytes) -> tuple[Reason, str]:
    if not value.strip():
        return Reason.EMPTY, "the message is empty"
    return Reason.MALFORMED, wire_prefix(value) or "no format knows this record: name the topic's format"
