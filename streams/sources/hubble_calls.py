"""Which of the events that Hubble writes of one connection is its call, and at which end it was seen. Pure.

The first packet of a connection makes several events at each node: a policy's verdict, a drop, traces at one point of
the datapath after the other. For each end of a connection one of them counts; the others are repeats.

Source: cilium pkg/hubble/parser/threefour (direction, replies), bpf/lib/trace.h (which traces are sent),
api/v1/flow/flow.proto.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from schemas.flow import SIDE_CLIENT, SIDE_SERVER, UNKNOWN
from schemas.tenant_log import IntColumn
from streams.sources.draft import Words, coded_words
from streams.sources.hubble_records import Flow
from streams.sources.orientation import Mask
from streams.sources.typed import mask_of

_CAPTURE, _TRACE, _VERDICT, _SOCKET = 3, 4, 5, 7
"""Types of Cilium's events."""
_UNTOLD = 0
_SOCKET_VERDICTS = frozenset({"TRACED", "TRANSLATED"})

_LEAVING, _ARRIVING, _BETWEEN = 1, 2, 3
_POINTS = Words(
    {
        **dict.fromkeys((None, "", "UNKNOWN_POINT"), _UNTOLD),
        **dict.fromkeys(("TO_STACK", "TO_OVERLAY", "TO_NETWORK", "TO_HOST"), _LEAVING),
        "TO_ENDPOINT": _ARRIVING,
    },
    _BETWEEN,
)
"""Where a packet was traced: on its way from an endpoint, to an endpoint, or anywhere else: to and from the proxy, and
where it came in (``FROM_...``), which Cilium writes without aggregation alone, and after which it is traced again."""
_INGRESS, _EGRESS = 0, 1
_DIRECTIONS = Words({"INGRESS": _INGRESS, "EGRESS": _EGRESS})
_LATER = Words({"ESTABLISHED": 1, "REPLY": 1, "RELATED": 1}, 0)
"""Why a packet was let through: as one of a connection that conntrack knew."""


def kind_of(flow: Flow) -> int:
    """Return the type of a flow's event; 0 where nothing tells."""
    if flow.event_type is not None and flow.event_type.type:
        return flow.event_type.type
    if flow.Type == "SOCK" or flow.verdict in _SOCKET_VERDICTS:
        return _SOCKET
    if flow.policy_match_type:
        return _VERDICT
    return _TRACE if flow.trace_observation_point else _UNTOLD


def not_a_packet(flow: Flow) -> str | None:
    """Return what an event is that shows no packet: the packets of the same connection are events of their own."""
    kind = kind_of(flow)
    return "socket" if kind == _SOCKET else "capture" if kind == _CAPTURE else None


@dataclass(frozen=True, slots=True)
class Seen:
    """How events tell of connections.

    Attributes:
        is_repeat: ``(n,)``, events whose call, refusal or error another event of the same end tells.
        is_later: ``(n,)``, events of connections that began before.
        side: ``(n,)``, the end that an event was seen at.
    """

    is_repeat: Mask
    is_later: Mask
    side: IntColumn


def seen(flows: Sequence[Flow], reply: IntColumn, swapped: Mask, *, by_verdicts: bool) -> Seen:
    """Say how events of packets and requests tell of connections.

    Shapes:
        reply, swapped: ``(n,)``; whether Hubble says that it is a reply (-1 it does not), whether it was found to be.

    Args:
        by_verdicts: policy verdicts count, not the traces and drops that follow them.
    """
    size = len(flows)
    kind = np.fromiter(map(kind_of, flows), dtype=np.int64, count=size)
    point = coded_words(_POINTS, [flow.trace_observation_point for flow in flows])
    direction = coded_words(_DIRECTIONS, [flow.traffic_direction for flow in flows])
    is_packet = mask_of((flow.l7 is None for flow in flows), size)
    # Where conntrack was not asked, Hubble knows neither: the endpoint's own program has traced the packet already.
    unasked = (kind == _TRACE) & (reply == UNKNOWN) & (direction == UNKNOWN)
    # The host's program traces what leaves again, and takes itself for the receiver. What leaves for an endpoint of the
    # same node is traced as it arrives there.
    from_local = mask_of((flow.source is not None and flow.source.ID > 0 for flow in flows), size)
    to_local = mask_of((flow.destination is not None and flow.destination.ID > 0 for flow in flows), size)
    by_host = direction == np.where(swapped, _EGRESS, _INGRESS)
    again = (point == _LEAVING) & from_local & (by_host | to_local)
    told = (kind != _VERDICT) if by_verdicts else (kind == _VERDICT)
    by_point = np.where((point == _LEAVING) == swapped, SIDE_SERVER, SIDE_CLIENT)
    by_direction = np.where(direction == _INGRESS, SIDE_SERVER, SIDE_CLIENT)
    is_between = (point == _UNTOLD) | (point == _BETWEEN)
    # What has one report stands for both ends, lest the end that is chosen lacks it: an exchange within a node, an
    # answer, of which the proxy of one end tells, and a drop.
    dropped = mask_of((flow.verdict == "DROPPED" for flow in flows), size)
    is_apart = (kind == _VERDICT) & by_verdicts  # each end has its own policies
    is_only = ~is_packet | dropped | (from_local & to_local & ~is_apart)
    # What is dropped on its way in was sent by a pod elsewhere, whose node has traced it.
    from_pod = mask_of((flow.source is not None and bool(flow.source.namespace) for flow in flows), size)
    is_traced = is_packet & dropped & (kind != _VERDICT) & (direction == _INGRESS) & from_pod & ~from_local
    return Seen(
        is_repeat=is_packet & (told | unasked | again | (point == _BETWEEN)),
        is_later=is_traced | (coded_words(_LATER, [flow.trace_reason for flow in flows]) > 0),
        side=np.where(is_only, SIDE_CLIENT, np.where(is_between, by_direction, by_point)),
    )
