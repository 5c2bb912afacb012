"""Edges and services of a drift event in OCSF's words: endpoints, connections, resources, observables. Pure."""

import ipaddress
import re

from schemas.drift import HOST_SUBJECT, STRUCTURAL_KINDS, TELEMETRY_KINDS, DriftEvent, EdgeRef
from schemas.flow import PROTOCOL_NAMES, UNKNOWN
from schemas.ids import ADDRESS_PREFIX, EXTERNAL_PREFIX, NETWORK_PREFIX, is_external
from schemas.ocsf_types import ConnectionInfo, Endpoint, EvidenceArtifact, Observable, Resource

_ACTOR, _TARGET, _AFFECTED = (2, "Actor"), (1, "Target"), (3, "Affected")
_IP_ADDRESS, _PORT, _RESOURCE_NAME = (2, "IP Address"), (11, "Port"), (38, "Resource Name")
_DOMAIN = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]", re.I)


def _endpoint(service: str, port: int = UNKNOWN) -> Endpoint:
    shown_port = None if port == UNKNOWN else port
    if not is_external(service):
        return Endpoint(name=service, svc_name=_workload(service)[1], ip=_address(service), port=shown_port)
    outside = service.removeprefix(EXTERNAL_PREFIX)
    domain = outside if _DOMAIN.fullmatch(outside) else None
    return Endpoint(name=service, ip=_ip(outside), domain=domain, port=shown_port)


def _workload(service: str) -> tuple[str | None, str]:
    """Return namespace and name of a service of the estate; a host, or a part of the network, has no namespace."""
    if service.startswith((ADDRESS_PREFIX, NETWORK_PREFIX)):
        return None, service
    namespace, _, name = service.rpartition("/")
    return namespace or None, name or service


def _address(service: str) -> str | None:
    """Return the address that stands for a service, outside or on a LAN, if it is known by one."""
    for prefix in (EXTERNAL_PREFIX, ADDRESS_PREFIX):
        if service.startswith(prefix):
            return _ip(service.removeprefix(prefix))
    return None


def _ip(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def artifact_of(edge: EdgeRef) -> EvidenceArtifact:
    """Show one edge as an evidence artifact."""
    direction = (3, "Lateral")
    if is_external(edge.dst):
        direction = (2, "Outbound")
    elif is_external(edge.src):
        direction = (1, "Inbound")
    boundary = (2, "Internal") if direction[0] == 3 else (3, "External")
    return EvidenceArtifact(
        src_endpoint=_endpoint(edge.src),
        dst_endpoint=_endpoint(edge.dst, edge.port),
        connection_info=ConnectionInfo(
            direction_id=direction[0],
            direction=direction[1],
            boundary_id=boundary[0],
            boundary=boundary[1],
            protocol_num=None if edge.protocol == UNKNOWN else edge.protocol,
            protocol_name=PROTOCOL_NAMES.get(edge.protocol),
        ),
    )


def edge_of(artifact: EvidenceArtifact) -> EdgeRef:
    """Read back what ``artifact_of`` showed."""
    port, protocol = artifact.dst_endpoint.port, artifact.connection_info.protocol_num
    return EdgeRef(
        src=artifact.src_endpoint.name,
        dst=artifact.dst_endpoint.name,
        port=UNKNOWN if port is None else port,
        protocol=UNKNOWN if protocol is None else protocol,
    )


def target_type(event: DriftEvent) -> str:
    """Return what a finding is about: an edge, a service, or the source of flows."""
    if event.kind in TELEMETRY_KINDS:
        return "Host" if event.src.startswith(HOST_SUBJECT) else "Log Source"
    return "Service Edge" if event.src and event.dst else "Service"


def resources_of(event: DriftEvent) -> tuple[Resource, ...]:
    """Return the services of the estate that the finding is about; what lies outside is an endpoint, no resource.

    Of a finding about a source: the host that reports, or the lane.
    """
    if event.kind in TELEMETRY_KINDS:
        role_id, role = _AFFECTED
        return (Resource(uid=event.src, name=event.src, type=target_type(event), role_id=role_id, role=role),)
    src_role = _ACTOR if event.kind in STRUCTURAL_KINDS or not event.dst else _AFFECTED
    ends = ((event.src, src_role), (event.dst, _TARGET))
    return tuple(
        Resource(
            uid=service,
            name=_workload(service)[1],
            namespace=_workload(service)[0],
            type="Service",
            role_id=role_id,
            role=role,
        )
        for service, (role_id, role) in ends
        if service and not is_external(service)
    )


def observables_of(event: DriftEvent) -> tuple[Observable, ...]:
    """Return what to search by: services, outside addresses and ports, each value once."""
    found: dict[tuple[str, str], Observable] = {}

    def add(path: str, kind: tuple[int, str], value: str) -> None:
        found.setdefault((kind[1], value), Observable(name=path, type_id=kind[0], type=kind[1], value=value))

    for resource in resources_of(event):
        add("resources[].uid", _RESOURCE_NAME, resource.uid)
    for edge in event.edges:
        for path, service in (("evidences[].src_endpoint", edge.src), ("evidences[].dst_endpoint", edge.dst)):
            address = _address(service)
            if address is not None:
                add(f"{path}.ip", _IP_ADDRESS, address)
            if not is_external(service):
                add(f"{path}.name", _RESOURCE_NAME, service)
        if edge.port != UNKNOWN:
            add("evidences[].dst_endpoint.port", _PORT, str(edge.port))
    return tuple(found.values())
