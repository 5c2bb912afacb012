"""What comes back at its hour or at a restart, in a lane: departures, and silences that end as they did. Pure."""

import numpy as np
import numpy.typing as npt

from models.drift.calendar import HOUR_MS, Subject, expect, is_recurring
from models.drift.detection import Detection
from models.drift.findings import FindingBook, key_of
from models.drift.restart import expect_at_start
from models.graph.lane import IntColumn, LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.registry import NEVER
from schemas.drift import DriftKind
from schemas.tenant_log import EdgeIdentity

Mask = npt.NDArray[np.bool_]

ACCEPT_MS = 6 * HOUR_MS
"""For how long a departure teaches its edge's baseline nothing; after that it is what is usual from now on."""


def accept_windows(lane: LaneState) -> int:
    """Return ``ACCEPT_MS`` in windows."""
    return max(1, ACCEPT_MS // lane.config.window_ms)


def with_expected(lane: LaneState, tenant: int, index: int, detections: list[Detection]) -> list[Detection]:
    """Return a closed window's detections of a tenant as they are to be told, and note them in its calendar."""
    if lane.logic < PRODUCERS_OWN or not detections:
        return detections
    return [
        _expected(lane, tenant, index, detection, notes=True)
        for detection in sorted(detections, key=lambda detection: detection.sort_key)
    ]


def as_expected(lane: LaneState, tenant: int, index: int, detection: Detection) -> Detection:
    """Return an early detection as the windows that are closed let it be told."""
    if lane.logic < PRODUCERS_OWN:
        return detection
    return _expected(lane, tenant, index, detection, notes=False)


def _expected(lane: LaneState, tenant: int, index: int, detection: Detection, notes: bool) -> Detection:
    state, name, window_ms = lane.tenants[tenant], lane.registry.tenants[tenant], lane.config.window_ms
    needed = lane.detection(name).recurring_after

    def is_open_news(found: Detection) -> bool:
        return _is_open_news(state.book, key_of(name, lane.config.name, found))

    for by in (expect, expect_at_start):
        detection = by(state.calendar, detection, index * window_ms, window_ms, needed, is_open_news, notes)
    return detection


def _is_open_news(book: FindingBook, key: str) -> bool:
    finding = book.open.get(key)
    return finding is not None and finding.is_settled and not is_recurring(finding.detection)


def teaches_nothing(lane: LaneState, tenant: int, index: int, detection: Detection, history: int) -> bool:
    """Say whether a window in which an edge departs is kept from its baseline.

    It is for as long as `ACCEPT_MS`, but no longer than ``history``, the windows for which it was otherwise.
    """
    time_ms = index * lane.config.window_ms
    since_ms = lane.tenants[tenant].calendar.since_ms(detection.sort_key, time_ms)
    gone_on = 0 if since_ms is None else (time_ms - since_ms) // lane.config.window_ms
    return gone_on < min(accept_windows(lane), history)


def goes_on(lane: LaneState, tenant: int, index: int, detection: Detection) -> bool:
    """Say whether a departure in a window carries on one of a window before."""
    time_ms = index * lane.config.window_ms
    return lane.tenants[tenant].calendar.since_ms(detection.sort_key, time_ms) is not None


def put_off_removal(lane: LaneState, number: int, identity: EdgeIdentity, index: int) -> bool:
    """Say whether a silent edge is to be back later than window ``index``, and wait for that."""
    edge = lane.registry.edge.array
    tenant = int(edge["tenant"][number])
    config = lane.detection(lane.registry.tenants[tenant])
    if lane.logic < PRODUCERS_OWN or not config.recurring_after:
        return False
    window_ms = lane.config.window_ms
    first_ms = (int(edge["last_index"][number]) + 1) * window_ms
    back_ms = lane.tenants[tenant].calendar.back_ms(_silence_of(identity), first_ms)
    if back_ms is None or -(-back_ms // window_ms) <= index:
        return False
    edge["expected_back"][number] = -(-back_ms // window_ms)
    return True


def note_returns(lane: LaneState, index: int, present: IntColumn, floors: IntColumn | None) -> Mask:
    """Note the silences that end in a closed window; return which edges' silence was one of those expected.

    Shapes:
        present: ``(P,)`` edge numbers, before they are noted as seen. floors: by tenant, up to where silence counts for
        nothing; None for no such thing. returns ``(P,)``.
    """
    edge = lane.registry.edge.array
    is_expected: Mask = edge["expected_back"][present] > edge["last_index"][present]
    for number in present[edge["gone"][present] | is_expected].tolist():
        identity, last = lane.registry.identities[number], int(edge["last_index"][number])
        tenant = int(edge["tenant"][number])
        floor = max(lane.quiet_floor, -1 if floors is None else int(floors[tenant]))
        if identity is not None and last != NEVER and last >= floor:
            window_ms = lane.config.window_ms
            calendar = lane.tenant_state(tenant).calendar
            calendar.note_silence(_silence_of(identity), (last + 1) * window_ms, index * window_ms)
    edge["expected_back"][present] = NEVER
    return is_expected


def _silence_of(identity: EdgeIdentity) -> Subject:
    return (DriftKind.REMOVED_EDGE, *identity[1:])
