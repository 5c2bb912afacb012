"""What a change would do to the service graph before it is deployed: its parts, and the report."""

import msgspec

from schemas.drift import DriftKind


class Location(msgspec.Struct, frozen=True):
    """Where in the files of a change something stands. ``line`` counts from 1; 0 is the whole file."""

    file: str
    line: int = 0


class BaselineEdge(msgspec.Struct, frozen=True):
    """An edge that was learned. ``port`` and ``protocol`` (IANA number) are -1 where unknown."""

    src: str
    dst: str
    port: int = -1
    protocol: int = -1
    calls: int = 0


class DeclaredCall(msgspec.Struct, frozen=True):
    """A call that a change declares: a workload is told another's address, or an edge list names it.

    Attributes:
        src, dst: names as in the service graph. port, protocol: -1 where nothing says them.
        reason: what declares it, in a few words.
    """

    src: str
    dst: str
    port: int
    protocol: int
    reason: str
    location: Location


class ForbiddenEdge(msgspec.Struct, frozen=True):
    """A rule of the tenant: no call from a service to another. Names are globs; ``port`` -1 is any."""

    name: str
    src: str
    dst: str
    port: int = -1


class PredictedChange(msgspec.Struct, frozen=True):
    """One thing the change would do.

    Attributes:
        effect: ``adds`` an edge that was never seen; ``breaks`` one that was: a policy would refuse it; ``shadows`` a
            call the change itself declares: its policies would refuse it; ``violates`` a rule.
        drift_kinds: findings that it would raise once deployed.
        risk: 0..100.
    """

    effect: str
    src: str
    dst: str
    port: int
    protocol: int
    reason: str
    risk: int
    location: Location
    drift_kinds: tuple[DriftKind, ...] = ()


class PredictionReport(msgspec.Struct, frozen=True):
    """What a change would do, most risk first.

    Attributes:
        risk: 0..100; 0 for a change that does nothing to the graph. reasons: what makes it so, in sentences.
        drift_events: how many findings of each kind it would raise.
        notes: what could not be told, in sentences.
    """

    risk: int
    reasons: tuple[str, ...]
    changes: tuple[PredictedChange, ...]
    drift_events: dict[str, int]
    notes: tuple[str, ...] = ()
