"""Records of Hubble: what is used of them. Fields are named as in flow.proto and observer.proto. Pure."""

from typing import Annotated

import msgspec

from schemas.flow import Port

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Workload(msgspec.Struct, gc=False):
    name: str = ""
    kind: str = ""


class Endpoint(msgspec.Struct, gc=False):
    ID: Count = 0
    namespace: str = ""
    pod_name: str = ""
    workloads: tuple[Workload, ...] = ()
    labels: tuple[str, ...] = ()
    cluster_name: str = ""


class Service(msgspec.Struct, gc=False):
    name: str = ""
    namespace: str = ""


class Ip(msgspec.Struct, gc=False):
    source: str = ""
    destination: str = ""


class TcpFlags(msgspec.Struct, gc=False):
    SYN: bool = False
    ACK: bool = False
    RST: bool = False


class Ports(msgspec.Struct, gc=False):
    source_port: Port | None = None
    destination_port: Port | None = None
    flags: TcpFlags | None = None


class Icmp(msgspec.Struct, gc=False):
    type: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0


class Layer4(msgspec.Struct, gc=False):
    TCP: Ports | None = None
    UDP: Ports | None = None
    SCTP: Ports | None = None
    ICMPv4: Icmp | None = None
    ICMPv6: Icmp | None = None


class Http(msgspec.Struct, gc=False):
    code: int | None = None


class Dns(msgspec.Struct, gc=False):
    rcode: int | str | None = None


class Kafka(msgspec.Struct, gc=False):
    error_code: int | None = None


class Layer7(msgspec.Struct, gc=False):
    type: str = ""
    latency_ns: Count | None = None
    http: Http | None = None
    dns: Dns | None = None
    kafka: Kafka | None = None


class EventType(msgspec.Struct, gc=False):
    type: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0


class Flow(msgspec.Struct, gc=False):
    """What is used of a flow."""

    time: str | None = None
    verdict: str | None = None
    drop_reason_desc: str | None = None
    IP: Ip | None = None
    l4: Layer4 | None = None
    l7: Layer7 | None = None
    source: Endpoint | None = None
    destination: Endpoint | None = None
    source_names: tuple[str, ...] = ()
    destination_names: tuple[str, ...] = ()
    source_service: Service | None = None
    destination_service: Service | None = None
    is_reply: bool | None = None
    reply: bool | None = None
    traffic_direction: str | None = None
    event_type: EventType | None = None
    Type: str | None = None
    policy_match_type: Count | None = None
    trace_observation_point: str | None = None
    trace_reason: str | None = None
    node_name: str | None = None


class Event(msgspec.Struct, gc=False):
    """A record that holds a flow."""

    flow: Flow
    node_name: str | None = None
    time: str | None = None


class LostEvents(msgspec.Struct, gc=False):
    source: str = "UNKNOWN"
    num_events_lost: Count | None = None


class NodeStatus(msgspec.Struct, gc=False):
    state_change: str = "UNKNOWN"
    node_names: tuple[str, ...] = ()


class Unread(msgspec.Struct, gc=False):
    """An object whose fields do not matter."""


class Other(msgspec.Struct, gc=False):
    flow: msgspec.Raw = msgspec.Raw()
    lost_events: LostEvents | None = None
    node_status: NodeStatus | None = None
    agent_event: Unread | None = None
    debug_event: Unread | None = None
    node_name: str | None = None
    time: str | None = None
