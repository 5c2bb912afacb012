"""One connection is one call at each end, however many records a producer writes of it."""

import json
from collections import Counter
from typing import Any

import pytest

from schemas.flow import SIDE_CLIENT, SIDE_SERVER, UNKNOWN
from streams.sources.format import Decoded
from streams.sources.registry import source_format


def calls(decoded: Decoded) -> dict[int, int]:
    """Calls by reporting side: rows that another one does not count."""
    found: Counter[int] = Counter()
    for run in decoded.runs:
        counted = run.columns["calls"] * (1 - run.columns.get("continued", 0 * run.columns["calls"]))
        for side, count in zip(run.columns["side"].tolist(), counted.tolist(), strict=True):
            found[side] += count
    assert decoded.rejected == []
    return {side: count for side, count in found.items() if count}


def total(decoded: Decoded, measure: str) -> int:
    return sum(int(value) for run in decoded.runs for value in run.columns.get(measure, ()) if value != UNKNOWN)


# -- Hubble ------------------------------------------------------------------------------------------------------------

CLIENT = {"ID": 423, "namespace": "shop", "pod_name": "frontend-6c9d4d5f7b-x2k4q"}
SERVER = {"ID": 871, "namespace": "shop", "pod_name": "cart-7848d6c4d5-th9v2"}
NODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # client and server as a node knows them: only its own endpoints have a number
    "client": (CLIENT, {name: value for name, value in SERVER.items() if name != "ID"}),
    "server": ({name: value for name, value in CLIENT.items() if name != "ID"}, SERVER),
    "both": (CLIENT, SERVER),
}
SYN, SYN_ACK, ACK, RST = {"SYN": True}, {"SYN": True, "ACK": True}, {"ACK": True}, {"RST": True}
DROP, TRACE, VERDICT, SOCKET, ACCESS_LOG = 1, 4, 5, 7, 129


def event(kind: int, flags: dict[str, bool] | None = None, node: str = "client", **fields: Any) -> bytes:
    is_reply = fields.get("is_reply", False)
    ends = NODES[node][::-1] if is_reply else NODES[node]
    ports = (8080, 44916) if is_reply else (44916, 8080)
    flow = {
        "time": "2024-07-08T10:09:24Z",
        "verdict": "FORWARDED",
        "IP": {"source": "10.0.1.60", "destination": "10.0.1.5"},
        "l4": {"TCP": {"source_port": ports[0], "destination_port": ports[1], **({"flags": flags} if flags else {})}},
        "source": ends[0],
        "destination": ends[1],
        "Type": "L3_L4",
        "event_type": {"type": kind},
        "is_reply": is_reply,
        **fields,
    }
    return json.dumps({"flow": {n: v for n, v in flow.items() if v is not None}, "node_name": "w"}).encode()


def trace(flags: dict[str, bool], point: str, direction: str | None, reason: str = "NEW", **fields: Any) -> bytes:
    """A trace event; ``reason`` as Cilium calls what conntrack knew."""
    where = {"trace_observation_point": point, "traffic_direction": direction, "trace_reason": reason}
    return event(TRACE, flags, **{**where, **fields})


AT_CLIENT = [
    event(SOCKET, verdict="TRACED", is_reply=None),
    event(SOCKET, verdict="TRANSLATED", is_reply=None),
    event(VERDICT, SYN, traffic_direction="EGRESS", policy_match_type=1),
    trace(SYN, "FROM_ENDPOINT", None, reason="TRACE_REASON_UNKNOWN", is_reply=None),
    trace(SYN, "TO_STACK", "EGRESS"),
    trace(SYN, "TO_NETWORK", "INGRESS"),
    trace(SYN, "TO_NETWORK", None, reason="TRACE_REASON_UNKNOWN", is_reply=None),
    trace(SYN_ACK, "TO_ENDPOINT", "EGRESS", reason="REPLY", is_reply=True),
    trace(ACK, "TO_STACK", "EGRESS", reason="ESTABLISHED"),
]
AT_SERVER = [
    event(VERDICT, SYN, node="server", traffic_direction="INGRESS"),
    trace(SYN, "TO_ENDPOINT", "INGRESS", node="server"),
    trace(SYN_ACK, "TO_STACK", "INGRESS", reason="REPLY", is_reply=True, node="server"),
    trace(SYN_ACK, "TO_NETWORK", "EGRESS", reason="REPLY", is_reply=True, node="server"),
    trace(ACK, "TO_ENDPOINT", "INGRESS", reason="ESTABLISHED", node="server"),
]
WITHIN_A_NODE = [
    event(VERDICT, SYN, node="both", traffic_direction="EGRESS"),
    trace(SYN, "TO_STACK", "EGRESS", node="both"),
    event(VERDICT, SYN, node="both", traffic_direction="INGRESS"),
    trace(SYN, "TO_ENDPOINT", "INGRESS", node="both"),
    trace(SYN_ACK, "TO_STACK", "INGRESS", reason="REPLY", is_reply=True, node="both"),
    trace(SYN_ACK, "TO_ENDPOINT", "EGRESS", reason="REPLY", is_reply=True, node="both"),
]


def test_hubbles_events_of_a_connection_are_one_call_at_each_end() -> None:
    decoded = source_format("hubble").decode([*AT_CLIENT, *AT_SERVER])
    assert calls(decoded) == {SIDE_CLIENT: 1, SIDE_SERVER: 1}
    assert decoded.skipped == {"socket": 2}
    (edge,) = decoded.runs[0].group("t", Anyone()).edges
    assert edge[1:] == ("shop/frontend", "shop/cart", 8080, 6)


def test_hubbles_events_within_a_node_stand_for_both_ends() -> None:
    """The client's report is what is counted where there is one: it must have these calls, too."""
    decoded = source_format("hubble").decode(WITHIN_A_NODE)
    assert calls(decoded) == {SIDE_CLIENT: 1} and set(decoded.runs[0].columns["side"].tolist()) == {SIDE_CLIENT}
    together = source_format("hubble").decode([*AT_CLIENT, *AT_SERVER, *WITHIN_A_NODE])
    assert calls(together) == {SIDE_CLIENT: 2, SIDE_SERVER: 1}
    by_verdicts = source_format("hubble?calls=verdicts").decode(WITHIN_A_NODE)
    assert calls(by_verdicts) == {SIDE_CLIENT: 1, SIDE_SERVER: 1}
    refused = {"verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED", "is_reply": None, "node": "both"}
    dropped = source_format("hubble").decode([event(DROP, SYN, traffic_direction="INGRESS", **refused)])
    assert calls(dropped) == {SIDE_CLIENT: 1} and total(dropped, "denied") == 1


def test_hubbles_verdicts_alone_are_counted_where_the_configuration_says_so() -> None:
    decoded = source_format("hubble?calls=verdicts").decode([*AT_CLIENT, *AT_SERVER])
    assert calls(decoded) == {SIDE_CLIENT: 1, SIDE_SERVER: 1}
    verdicts = [AT_CLIENT[2], AT_SERVER[0]]
    assert calls(source_format("hubble?calls=verdicts").decode(verdicts)) == {SIDE_CLIENT: 1, SIDE_SERVER: 1}
    assert calls(source_format("hubble").decode(verdicts)) == {}


@pytest.mark.parametrize("spelling", ["hubble", "hubble?calls=verdicts"])
@pytest.mark.parametrize("direction", ["INGRESS", "EGRESS"])
def test_what_hubble_refused_is_one_call_refused_once(spelling: str, direction: str) -> None:
    """One end refuses, and the client's report is what is counted where there is one: it must have the refusal."""
    refused = {"verdict": "DROPPED", "drop_reason_desc": "POLICY_DENIED", "is_reply": None}
    node = "server" if direction == "INGRESS" else "client"
    events = [event(kind, SYN, node=node, traffic_direction=direction, **refused) for kind in (VERDICT, DROP)]
    if direction == "INGRESS" and spelling == "hubble":
        events.append(AT_CLIENT[4])  # it was let out
    decoded = source_format(spelling).decode(events)
    assert calls(decoded) == {SIDE_CLIENT: 1} and total(decoded, "denied") == 1 and total(decoded, "errors") == 0
    assert set(decoded.runs[0].columns["side"].tolist()) == {SIDE_CLIENT}
    world = {"labels": ["reserved:world"]}
    alone = source_format(spelling).decode([event(VERDICT, SYN, source=world, traffic_direction=direction, **refused)])
    drop = source_format(spelling).decode([event(DROP, SYN, source=world, traffic_direction=direction, **refused)])
    assert calls(alone) | calls(drop) == {SIDE_CLIENT: 1} and total(alone, "denied") + total(drop, "denied") == 1


def test_a_packet_lost_on_its_way_is_an_error_however_calls_are_counted() -> None:
    lost = event(DROP, SYN, verdict="DROPPED", drop_reason_desc="STALE_OR_UNROUTABLE_IP", is_reply=None)
    for spelling, count in (("hubble", 1), ("hubble?calls=verdicts", 0)):
        decoded = source_format(spelling).decode([lost])
        assert total(decoded, "errors") == 1 and total(decoded, "denied") == 0
        assert calls(decoded) == ({SIDE_CLIENT: count} if count else {})


def test_a_reset_traced_twice_is_one_error() -> None:
    resets = [
        trace(RST, "TO_STACK", "EGRESS", reason="ESTABLISHED"),
        trace(RST, "TO_NETWORK", "INGRESS", reason="ESTABLISHED"),
    ]
    assert total(source_format("hubble").decode(resets), "errors") == 1


def test_http_that_the_proxy_refuses_is_one_call_refused_once() -> None:
    http = {"http": {"method": "PUT", "url": "http://cart/"}}
    request = event(
        ACCESS_LOG, Type="L7", verdict="DROPPED", traffic_direction="INGRESS", l7={"type": "REQUEST", **http}
    )
    answered = {"type": "RESPONSE", "latency_ns": 1_000, "http": {"code": 403}}
    answer = event(ACCESS_LOG, Type="L7", traffic_direction="INGRESS", is_reply=True, l7=answered)
    to_proxy = trace(SYN, "TO_PROXY", "INGRESS")
    decoded = source_format("hubble").decode([to_proxy, request, answer])
    assert calls(decoded) == {SIDE_CLIENT: 1} and total(decoded, "denied") == 1
    dns = event(ACCESS_LOG, Type="L7", verdict="DROPPED", l7={"type": "REQUEST", "dns": {"query": "a.b."}})
    refused = source_format("hubble").decode([dns])
    assert calls(refused) == {SIDE_CLIENT: 1} and total(refused, "denied") == 1


def test_what_leaves_the_host_itself_is_the_clients_report() -> None:
    """The host has no endpoint of its own in the record: its program's trace is the only one."""
    host = {"identity": 1, "labels": ["reserved:host"]}
    decoded = source_format("hubble").decode([trace(SYN, "TO_NETWORK", "INGRESS", source=host)])
    assert calls(decoded) == {SIDE_CLIENT: 1}


def test_fields_that_users_mask_leave_the_handshake_to_count() -> None:
    masked = dict.fromkeys(("Type", "event_type", "is_reply"))
    events = [event(TRACE, flags, **masked) for flags in (SYN, SYN_ACK, ACK)]
    assert calls(source_format("hubble").decode(events)) == {SIDE_CLIENT: 1}


class Anyone(dict[str | None, int]):
    def __missing__(self, tenant: str | None) -> int:
        return 0


# -- interval records --------------------------------------------------------------------------------------------------

AWS_FIELDS = "interface-id,srcaddr,dstaddr,srcport,dstport,protocol,packets,bytes,end,action,tcp-flags,flow-direction"


def test_aws_intervals_of_a_connection_are_one_call_at_each_end() -> None:
    there, back = "10.0.0.1 10.0.0.2 40000 443", "10.0.0.2 10.0.0.1 443 40000"
    lines = []
    for end, flags, reply in ((60, 2, 18), (120, 0, 0), (180, 1, 1)):
        for interface, outward, inward in (("eni-a", "egress", "ingress"), ("eni-b", "ingress", "egress")):
            lines.append(f"{interface} {there} 6 5 500 {end} ACCEPT {flags} {outward}")
            lines.append(f"{interface} {back} 6 5 900 {end} ACCEPT {reply} {inward}")
    decoded = source_format(f"aws-vpc?fields={AWS_FIELDS}").decode([line.encode() for line in lines])
    assert calls(decoded) == {SIDE_CLIENT: 1, SIDE_SERVER: 1}
    assert total(decoded, "bytes_out") == 2 * 1_500 and total(decoded, "bytes_in") == 2 * 2_700


@pytest.mark.parametrize(
    ("client", "server", "side"),
    [
        ("10.0.0.1", "52.213.180.42", SIDE_CLIENT),
        ("52.213.180.42", "10.0.0.1", SIDE_SERVER),
        ("10.0.0.1", "10.0.0.2", SIDE_CLIENT),
        ("52.213.180.42", "52.213.180.43", SIDE_CLIENT),
    ],
)
def test_an_aws_record_that_does_not_say_is_the_report_of_the_only_end_that_can_have_made_it(
    client: str, server: str, side: int
) -> None:
    there = f"2 1 eni-1 {client} {server} 40000 443 6 20 4249 1418530010 1418530070 ACCEPT OK"
    back = f"2 1 eni-1 {server} {client} 443 40000 6 20 4249 1418530010 1418530070 ACCEPT OK"
    decoded = source_format("aws-vpc").decode([there.encode(), back.encode()])
    assert set(decoded.runs[0].columns["side"].tolist()) == {side} and calls(decoded) == {side: 1}


NETOBSERV = {"SrcAddr": "10.0.0.1", "DstAddr": "10.0.0.2", "SrcPort": 40000, "DstPort": 443, "Proto": 6, "Packets": 3}


def netobserv(**fields: Any) -> bytes:
    return json.dumps({"TimeFlowStartMs": 1_000, "TimeFlowEndMs": 6_000, **NETOBSERV, **fields}).encode()


def test_netobserv_records_of_an_unsampled_connection_are_one_call() -> None:
    records = [netobserv(Sampling=1, Flags=flags) for flags in (["SYN", "ACK"], ["ACK"], ["ACK", "FIN"])]
    back = {"SrcPort": 443, "DstPort": 40000, "SrcAddr": "10.0.0.2", "DstAddr": "10.0.0.1", "Sampling": 1}
    records += [netobserv(**back, Flags=flags) for flags in (["SYN_ACK"], ["ACK"])]
    records.append(netobserv(Sampling=1, Flags=["SYN"], Duplicate=True))
    decoded = source_format("netobserv").decode(records)
    assert calls(decoded) == {SIDE_CLIENT: 1} and decoded.skipped == {"duplicate": 1}


def test_of_sampled_packets_each_netobserv_record_counts_for_most_syns_are_not_among_them() -> None:
    records = [netobserv(Sampling=50, Flags=["ACK"]), netobserv(Flags=["ACK"]), netobserv(Sampling=1, Proto=17)]
    assert calls(source_format("netobserv").decode(records)) == {SIDE_CLIENT: 3}


# -- ICMP --------------------------------------------------------------------------------------------------------------

ZEEK = {"ts": 100.0, "id.orig_h": "10.0.0.2", "id.resp_h": "10.0.0.1", "proto": "icmp", "conn_state": "OTH"}
SURICATA = {"event_type": "flow", "timestamp": "1970-01-01T00:01:40Z", "src_ip": "10.0.0.2", "dest_ip": "10.0.0.1"}
V6 = {"10.0.0.1": "2001:db8::1", "10.0.0.2": "2001:db8::2"}


def icmp(name: str, kind: int, code: int, *, is_v6: bool) -> bytes:
    """A message of ICMP from 10.0.0.2 to 10.0.0.1, in a format's record."""
    if name == "zeek-conn":
        record: dict[str, Any] = {**ZEEK, "id.orig_p": kind, "id.resp_p": code}
    elif name == "suricata-eve":
        wire = "IPv6-ICMP" if is_v6 else "ICMP"
        record = {**SURICATA, "proto": wire, "icmp_type": kind, "icmp_code": code, "flow": {}}
    elif name == "netobserv":
        ends = {"SrcAddr": "10.0.0.2", "DstAddr": "10.0.0.1", "TimeFlowStartMs": 1_000}
        record = {**ends, "Proto": 58 if is_v6 else 1, "IcmpType": kind, "IcmpCode": code}
    else:
        ip = {"source": "10.0.0.2", "destination": "10.0.0.1"}
        layer = {"ICMPv6" if is_v6 else "ICMPv4": {"type": kind, "code": code}}
        record = {"flow": {"time": "1970-01-01T00:01:40Z", "IP": ip, "l4": layer, "is_reply": False}}
    text = json.dumps(record)
    for four, six in V6.items() if is_v6 else ():
        text = text.replace(four, six)
    return text.encode()


@pytest.mark.parametrize("name", ["zeek-conn", "suricata-eve", "netobserv", "hubble"])
@pytest.mark.parametrize(
    ("kind", "code", "is_v6", "is_answer"),
    [
        (8, 0, False, False),
        (0, 0, False, True),
        (3, 3, False, True),
        (11, 0, False, True),
        (13, 0, False, False),
        (14, 0, False, True),
        (128, 0, True, False),
        (129, 0, True, True),
        (1, 4, True, True),
        (3, 0, True, True),
        (135, 0, True, False),
        (8, 0, True, False),
    ],
)
def test_icmp_has_no_port_and_its_answers_are_folded(
    name: str, kind: int, code: int, is_v6: bool, is_answer: bool
) -> None:
    decoded = source_format(name).decode([icmp(name, kind, code, is_v6=is_v6)])
    (edge,) = decoded.runs[0].group("t", Anyone()).edges
    sender, receiver = ("ip:2001:db8::2", "ip:2001:db8::1") if is_v6 else ("ip:10.0.0.2", "ip:10.0.0.1")
    ends = (receiver, sender) if is_answer else (sender, receiver)
    assert edge[1:] == (*ends, -1, 58 if is_v6 else 1)


def test_icmp_of_aws_has_no_port() -> None:
    lines = [
        f"2 1 eni-1 10.0.0.1 10.0.0.2 {a} {b} 1 4 336 1432917027 1432917142 ACCEPT OK" for a, b in ((0, 0), (8, 3))
    ]
    decoded = source_format("aws-vpc").decode([line.encode() for line in lines])
    assert {edge[1:] for edge in decoded.runs[0].group("t", Anyone()).edges} == {("ip:10.0.0.1", "ip:10.0.0.2", -1, 1)}
