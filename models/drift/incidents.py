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
    oldest: dict[str, int] = {}  # service to its oldest incident: a flood of findings must not compare all with all
    for place, incident in enumerate(open_incidents):
        for service in incident.services:
            oldest.setdefault(service, place)
    for number in sorted(range(len(detections)), key=lambda n: detections[n].sort_key):
        detection = detections[number]
        services = services_of(detection)
        place = min((oldest[service] for service in services if service in oldest), default=len(open_incidents))
        if place == len(open_incidents):
            incident_id = stable_hash("incident", tenant, lane, generation, index, *detection.sort_key)
            open_incidents.append(Incident(incident_id, set(), index))
        joined = open_incidents[place]
        joined.last_index = index
        room = MAX_SERVICES - len(joined.services)
        for service in sorted(services - joined.services)[:room]:
            joined.services.add(service)
            oldest[service] = min(oldest.get(service, place), place)
        assigned[number] = joined.incident_id
    return [assigned[number] for number in range(len(detections))]
