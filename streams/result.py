"""Verdicts of the ingest steps. Pure: steps return them, one place (streams/ingest/agent.py) makes them effects."""

from dataclasses import dataclass

from schemas.dead_letter import Reason
from schemas.ids import MAX_RECORDS_PER_MESSAGE

WHOLE_MESSAGE = MAX_RECORDS_PER_MESSAGE
"""Index of a verdict that concerns a whole message and not one of its records."""

MAX_DETAIL_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record, or a message, that becomes a dead letter.

    Attributes:
        message: index of the message among those given to the step.
        index: index of the record in its message, or ``WHOLE_MESSAGE``.
        payload: the original bytes of the record or message.
    """

    message: int
    index: int
    reason: Reason
    detail: str
    payload: bytes


class Refusal(Exception):
    """Raised by a source format: this message, or this record, cannot be used."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def short(text: str) -> str:
    """Return ``text`` on one line, cut to what a dead letter's detail may hold."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_DETAIL_CHARACTERS else line[: MAX_DETAIL_CHARACTERS - 1] + "…"
