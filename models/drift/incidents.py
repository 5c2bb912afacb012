"""Findings of one cause share an incident: those that touch the same services within a few windows. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.drift.detection import Detection
from schemas.ids import stable_hash

JOIN_WITHIN_WINDOWS = 6
MAX_SERVICES = 200
MAX_OPEN = 100


@dataclass(slots=True)
class Incident:
    """An incident that can still be joined."""

    incident_id: str
    services: set[str]
    last_index: int


def provisional_incident_id(tenant: str, lane: str, window_start_ms: int) -> str:
    """Return the incident id of early findings of a window; settled once the window closes."""
    return stable_hash("early-incident", tenant, lane, window_start_ms)


def services_of(detection: Detection) -> set[str]:
    """Return the services a detection touches."""
    names = {detection.src, detection.dst} - {""}
    for ref in detection.edges:
        names |= {ref.src, ref.dst}
    return names


def assign(
    tenant: str, lane: str, generation: int, index: int, detections: Sequence[Detection], open_incidents: list[Incident]
) -> list[str]:
    """Return an incident id per detection and update ``open_incidents`` in place.

    A detection joins the oldest open incident it shares a service with, else one that another detection of this window
    has begun. Depends on the set of detections alone: they are taken in sorted order.
    """
    open_incidents[:] = [i for i in open_incidents if index - i.last_index <= JOIN_WITHIN_WINDOWS][-MAX_OPEN:]
    assigned: dict[int, str] = {}
    for number in sorted(range(len(detections)), key=lambda n: detections[n].sort_key):
        detection = detections[number]
        services = services_of(detection)
        joined = next((i for i in open_incidents if i.services & services), None)
        if joined is None:
            incident_id = stable_hash("incident", tenant, lane, generation, index, *detection.sort_key)
            joined = Incident(incident_id, set(), index)
            open_incidents.append(joined)
        joined.last_index = index
        room = MAX_SERVICES - len(joined.services)
        joined.services |= set(sorted(services - joined.services)[:room])
        assigned[number] = joined.incident_id
    return [assigned[number] for number in range(len(detections))]
