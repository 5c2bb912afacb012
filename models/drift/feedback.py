"""What people have said of findings, and what they never want to be alerted to: how it moves a verdict. Pure.

Nothing is kept here: feedback and whitelist come as arguments. One saying about a finding is taken for ten times as
many windows in which its like is usual, or a tenth, which is `POINTS` either way on the scale of risk (rarity.py);
about another finding of the same kind between the same two services, for half of that. Sayings add up to `MOST_POINTS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from models.drift.detection import Detection
from schemas.drift import DriftKind

POINTS = 20
MOST_POINTS = 40


@dataclass(frozen=True, slots=True)
class Feedback:
    """One saying of a person about a finding. ``is_true``: it was worth a person's time."""

    fingerprint: str
    kind: DriftKind
    src: str
    dst: str
    is_true: bool


@dataclass(frozen=True, slots=True)
class WhitelistEntry:
    """What is never an alert. Each of kind, source and destination is a pattern (``*``, ``?``, ``[...]``).

    Attributes:
        port: -1 is any. expires_ms: event time from which it no longer holds; ``None``: for ever.
    """

    entry_id: str
    kind: str = "*"
    src: str = "*"
    dst: str = "*"
    port: int = -1
    expires_ms: int | None = None

    def holds(self, detection: Detection, time_ms: int) -> bool:
        """Say whether it is about a detection at an event time."""
        return (
            (self.expires_ms is None or time_ms < self.expires_ms)
            and fnmatchcase(detection.kind, self.kind)
            and fnmatchcase(detection.src, self.src)
            and fnmatchcase(detection.dst, self.dst)
            and self.port in (-1, detection.port)
        )


def points_of(fingerprint: str, detection: Detection, feedback: Sequence[Feedback]) -> int:
    """Return by how many points feedback moves the risk of a detection: down where it was said to be nothing."""
    points = 0
    for said in feedback:
        if said.fingerprint == fingerprint:
            points += POINTS if said.is_true else -POINTS
        elif (said.kind, said.src, said.dst) == (detection.kind, detection.src, detection.dst):
            points += POINTS // 2 if said.is_true else -(POINTS // 2)
    return max(-MOST_POINTS, min(MOST_POINTS, points))


def whitelisted_by(detection: Detection, time_ms: int, whitelist: Sequence[WhitelistEntry]) -> str:
    """Return the id of the first entry, by id, that is about a detection; empty where none is."""
    return min((entry.entry_id for entry in whitelist if entry.holds(detection, time_ms)), default="")
