"""What examples cannot show: options of producers' formats, mixed spellings, chunks, and what stays unknown."""

import json
from typing import Any

import msgspec
import pytest

from schemas.dead_letter import Reason
from schemas.ids import MAX_RECORDS_PER_MESSAGE
from streams.result import WHOLE_MESSAGE
from streams.sources.draft import loose_integers
from streams.sources.format import Decoded, LossSignal
from streams.sources.registry import source_format
from tests.bench.fuzz_sources import EXAMPLES, as_seen

ZEEK = {
    "ts": 100.25,
    "id.orig_h": "10.0.0.1",
    "id.orig_p": 40000,
    "id.resp_h": "10.0.0.2",
    "id.resp_p": 80,
    "proto": "tcp",
    "conn_state": "SF",
    "duration": 2.5,
    "orig_bytes": 7,
    "resp_bytes": 9,
}
NETOBSERV = {
    "TimeFlowStartMs": 1_000,
    "TimeFlowEndMs": 6_000,
    "SrcAddr": "10.0.0.1",
    "DstAddr": "10.0.0.2",
    "SrcPort": 40000,
    "DstPort": 80,
    "Proto": 6,
    "Bytes": 100,
    "Packets": 2,
    "SrcK8S_OwnerName": "a",
    "SrcK8S_Namespace": "n",
    "SrcK8S_OwnerType": "Deployment",
    "K8S_ClusterName": "eu",
}
AWS = "2 1 eni-1 10.0.0.1 10.0.0.2 40000 443 6 20 4249 1418530010 1418530070 ACCEPT OK"


class Targets(dict[str | None, int]):
    def __missing__(self, tenant: str | None) -> int:
        return 0 if tenant else -1


def of(record: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({k: v for k, v in {**record, **changes}.items() if v is not None}).encode()


def times(decoded: Decoded) -> list[int]:
    return [int(time_ms) for run in decoded.runs for time_ms in run.columns["time_ms"]]


def edges(decoded: Decoded) -> list[tuple[str, str, int, int]]:
    found: list[tuple[str, str, int, int]] = []
    for run in decoded.runs:
        grouping = run.group("t", Targets())
        found.extend((*grouping.edges[code][1:3], *grouping.edges[code][3:]) for code in grouping.edge.tolist())
    return found


def test_event_time_is_what_the_configuration_says() -> None:
    suricata = {"event_type": "flow", "src_ip": "10.0.0.1", "dest_ip": "10.0.0.2", "proto": "UDP"}
    flow = {"start": "1970-01-01T00:00:01Z", "end": "1970-01-01T00:00:06Z"}
    logged = of(suricata, flow=flow, timestamp="1970-01-01T00:01:06Z")
    for name, value, start_ms, end_ms, default_ms in [
        ("zeek-conn", of(ZEEK), 100_250, 102_750, 102_750),
        ("netobserv", of(NETOBSERV), 1_000, 6_000, 6_000),
        ("aws-vpc", AWS.encode(), 1_418_530_010_000, 1_418_530_070_000, 1_418_530_070_000),
        ("suricata-eve", logged, 1_000, 6_000, 66_000),
    ]:
        assert times(source_format(name).decode([value])) == [default_ms], name
        assert times(source_format(f"{name}?time=start").decode([value])) == [start_ms], name
        assert times(source_format(f"{name}?time=end").decode([value])) == [end_ms], name
    assert times(source_format("suricata-eve?time=logged").decode([logged])) == [66_000]


def test_a_time_that_is_not_there_is_the_nearest_that_is() -> None:
    instant = "1970-01-01T00:01:06Z"
    bare = {"event_type": "flow", "src_ip": "10.0.0.1", "dest_ip": "10.0.0.2", "flow": {}, "timestamp": instant}
    assert times(source_format("suricata-eve?time=start").decode([of(bare)])) == [66_000]
    unlogged = of(bare, flow={"end": instant}, timestamp="")
    assert times(source_format("suricata-eve").decode([unlogged])) == [66_000]
    assert times(source_format("zeek-conn").decode([of(ZEEK, duration=None)])) == [100_250]
    assert times(source_format("netobserv").decode([of(NETOBSERV, TimeFlowEndMs=None)])) == [1_000]
    only_start = source_format("aws-vpc?fields=srcaddr,dstaddr,start")
    assert times(only_start.decode([b"10.0.0.1 10.0.0.2 1418530010"])) == [1_418_530_010_000]
    only_end = source_format("aws-vpc?fields=srcaddr,dstaddr,end&time=start")
    assert times(only_end.decode([b"10.0.0.1 10.0.0.2 1418530070"])) == [1_418_530_070_000]


def test_the_cluster_is_the_records_or_the_configurations() -> None:
    assert edges(source_format("netobserv").decode([of(NETOBSERV)]))[0][0] == "eu:n/a"
    assert edges(source_format("netobserv?cluster=us").decode([of(NETOBSERV)]))[0][0] == "us:n/a"
    assert edges(source_format("netobserv?cluster=-").decode([of(NETOBSERV)]))[0][0] == "n/a"
    ends = {
        "source": {"namespace": "n", "pod_name": "a-0", "cluster_name": "default"},
        "IP": {"destination": "1.1.1.1"},
    }
    hubble = json.dumps({"flow": {**ends, "time": "2024-07-08T10:09:24Z"}}).encode()
    assert edges(source_format("hubble").decode([hubble])) == [("n/a", "ip:1.1.1.1", -1, -1)]
    assert edges(source_format("hubble:us").decode([hubble])) == [("us:n/a", "ip:1.1.1.1", -1, -1)]


def test_spellings_may_change_from_message_to_message() -> None:
    plain = of(ZEEK)
    spelled = [
        plain,
        plain.replace(b'"id.', b'"id_'),
        b'{"conn":' + plain + b"}",
        json.dumps({"message": plain.decode()}).encode(),
        of(
            {k: v for k, v in ZEEK.items() if not k.startswith("id.")},
            id={k[3:]: v for k, v in ZEEK.items() if k[:2] == "id"},
        ),
        b"[" + plain + b"," + plain + b"]",
        b"\xef\xbb\xbf" + plain + b"\n" + plain.replace(b'"id.', b'"id_') + b"\n",
        "\t".join(
            ["100.25", "C1", "10.0.0.1", "40000", "10.0.0.2", "80", "tcp", "-", "2.5", "7", "9", "SF", *"-" * 9]
        ).encode(),
    ]
    decoded = source_format("zeek-conn").decode([*spelled, *spelled[::-1]])
    assert decoded.rejected == []
    assert set(edges(decoded)) == {("ip:10.0.0.1", "ip:10.0.0.2", 80, 6)}
    assert len(edges(decoded)) == 2 * (len(spelled) + 2)
    assert set(times(decoded)) == {102_750}
    positions = [(int(m), int(i)) for run in decoded.runs for m, i in zip(run.message, run.index, strict=True)]
    assert positions == sorted(positions) and (5, 1) in positions and (6, 1) in positions


def test_a_record_that_could_be_read_in_two_ways_is_read_in_one() -> None:
    both = of(ZEEK, id_orig_h="9.9.9.9", id_resp_h="9.9.9.8", message="x")
    reading = source_format("zeek-conn")
    underscored = of(ZEEK).replace(b'"id.', b'"id_')
    alone = as_seen(reading.decode([both]))
    assert [entry[2:] for entry in as_seen(reading.decode([underscored, both])) if entry[0] == 1] == [alone[0][2:]]
    wrapped = json.dumps({"message": of(ZEEK).decode()}).encode()
    assert [entry[2:] for entry in as_seen(reading.decode([wrapped, both])) if entry[0] == 1] == [alone[0][2:]]


def test_what_a_source_does_not_say_is_unknown() -> None:
    bare = of(ZEEK, duration=None, orig_bytes=None, resp_bytes=None, proto="udp")
    (run,) = source_format("zeek-conn").decode([bare]).runs
    assert set(run.columns) == {"time_ms", "calls", "side"}


def test_large_values_are_rejected_and_their_neighbours_counted() -> None:
    values = [
        of(NETOBSERV),
        of(NETOBSERV, Bytes=1 << 49, Sampling=1 << 20),
        of(NETOBSERV, Bytes=1 << 60),
        of(NETOBSERV),
    ]
    decoded = source_format("netobserv").decode(values)
    assert [int(m) for m in decoded.runs[0].message] == [0, 3]
    assert [(bad.message, bad.reason) for bad in sorted(decoded.rejected, key=lambda bad: bad.message)] == [
        (1, Reason.INVALID_VALUE),
        (2, Reason.INVALID_VALUE),
    ]
    assert decoded.rejected[0].payload in values


def test_flags_are_read_as_numbers_and_as_names() -> None:
    reading = source_format("netobserv")
    swapped = of(NETOBSERV, SrcPort=40000, DstPort=41000, Flags=0x112)
    named = of(NETOBSERV, SrcPort=40000, DstPort=41000, Flags=["SYN_ACK"])
    plain = of(NETOBSERV, SrcPort=40000, DstPort=41000, Flags=0x12)
    assert [edge[2] for edge in edges(reading.decode([swapped, named, plain]))] == [40000, 40000, 41000]


def test_headers_speak_for_their_own_message_alone() -> None:
    header, line = "#fields\tid.resp_h\tid.orig_h\tts\tproto\tconn_state", "10.0.0.2\t10.0.0.1\t5\ttcp\tSF"
    decoded = source_format("zeek-conn").decode(
        [f"{header}\n{line}\n".encode(), line.encode(), f"#path\tdns\n{line}".encode()]
    )
    assert edges(decoded) == [("ip:10.0.0.1", "ip:10.0.0.2", -1, 6)]
    assert [(bad.message, bad.index) for bad in decoded.rejected] == [(1, 0)]
    assert decoded.skipped == {"header": 2, "dns": 1}


def test_loss_reports_keep_their_coordinates() -> None:
    events = {"source": "HUBBLE_RING_BUFFER", "num_events_lost": "17"}
    lost = json.dumps({"lost_events": events, "node_name": "n", "time": "1970-01-01T00:00:01Z"}).encode()
    good = (EXAMPLES / "hubble.jsonl").read_text(encoding="utf-8").splitlines()[0]
    flow = json.loads(good)["value"].encode()
    decoded = source_format("hubble").decode([flow, b"[" + flow + b"," + lost + b"]", lost])
    expected = [LossSignal(m, i, "lost_events:HUBBLE_RING_BUFFER", "n", 17, 1_000) for m, i in ((1, 1), (2, 0))]
    assert decoded.signals == expected and decoded.skipped == {"lost_events": 2}
    skipped = AWS.replace("ACCEPT OK", "- SKIPDATA")
    text = source_format("aws-vpc").decode([AWS.encode(), b"{}", skipped.encode()])
    assert [(signal.message, signal.kind, signal.host) for signal in text.signals] == [(2, "skipdata", "eni-1")]


def test_a_node_that_is_connected_again_is_no_loss() -> None:
    states = ("NODE_CONNECTED", "NODE_UNAVAILABLE", "NODE_GONE")
    values = [
        json.dumps({"node_status": {"state_change": state, "node_names": ["n"]}, "time": "1970-01-01T00:00:01Z"})
        for state in states
    ]
    decoded = source_format("hubble").decode([value.encode() for value in values])
    assert [signal.kind for signal in decoded.signals] == ["node_status:NODE_UNAVAILABLE", "node_status:NODE_GONE"]
    assert decoded.skipped == {"node_status": 3}


def test_cloudwatch_batches_count_each_event() -> None:
    events = [{"id": str(n), "timestamp": 1, "message": text} for n, text in enumerate([AWS, "garbage", AWS, ""])]
    message = json.dumps({"messageType": "DATA_MESSAGE", "logEvents": events}).encode()
    decoded = source_format("aws-vpc").decode([message, b'{"messageType":"CONTROL_MESSAGE","logEvents":[]}'])
    assert decoded.runs[0].index.tolist() == [0, 2]
    assert sorted((bad.message, bad.index) for bad in decoded.rejected) == [(0, 1), (0, 3)]
    assert decoded.runs[0].payload(1) == AWS.encode()
    assert decoded.skipped == {"control-message": 1}


@pytest.mark.parametrize(
    ("volume", "packets", "is_known"),
    [(131_070, 2, True), (131_071, 2, False), (1_964_191_874, 2, False), (1_964_191_874, None, True), (0, 0, True)],
)
def test_bytes_that_the_packets_seen_cannot_hold_are_unknown(volume: int, packets: int | None, is_known: bool) -> None:
    record = of(ZEEK, resp_bytes=volume, resp_pkts=packets, orig_bytes=91, orig_pkts=3)
    (run,) = source_format("zeek-conn").decode([record]).runs
    assert run.columns["bytes_out"].tolist() == [91]
    assert ("bytes_in" in run.columns and run.columns["bytes_in"].tolist() == [volume]) == is_known


@pytest.mark.parametrize("name", ["netobserv", "hubble", "istio-access", "aws-vpc", "zeek-conn", "suricata-eve"])
@pytest.mark.parametrize(
    ("value", "reason", "says"),
    [
        (b"", Reason.EMPTY, "empty"),
        (b" \n ", Reason.EMPTY, "empty"),
        (b"[]", Reason.EMPTY, "array is empty"),
        (b"\0\0\0\0\x2a{}", Reason.MALFORMED, "Confluent wire prefix (schema id 42)"),
        (b"{" * 100_000, Reason.MALFORMED, ""),
        (b"\xff\xfe\xfd", Reason.MALFORMED, ""),
        (b"7", Reason.MALFORMED, ""),
        (b"null", Reason.MALFORMED, ""),
        (b'{"a":1}', Reason.MALFORMED, ""),
    ],
)
def test_what_is_no_record_is_one_dead_letter(name: str, value: bytes, reason: Reason, says: str) -> None:
    (bad,) = source_format(name).decode([value]).rejected
    assert bad.reason == reason and says in bad.detail and bad.payload == value
    assert bad.index in (0, WHOLE_MESSAGE)


@pytest.mark.parametrize("blank", [b"\t", b" \t\n", b"\x0b", "\u2003".encode()])
def test_blank_text_beside_other_messages_is_a_dead_letter(blank: bytes) -> None:
    decoded = source_format("aws-vpc").decode([AWS.encode(), blank, b"", AWS.encode()])
    assert [int(message) for message in decoded.runs[0].message] == [0, 3]
    assert sorted(bad.message for bad in decoded.rejected) == [1, 2]


def test_too_many_records_of_a_message_are_refused() -> None:
    message = b"[" + b",".join([b"{}"] * (MAX_RECORDS_PER_MESSAGE + 1)) + b"]"
    (bad,) = source_format("suricata-eve").decode([message]).rejected
    assert bad.reason == Reason.TOO_MANY_RECORDS


def test_rows_without_a_tenant_say_so() -> None:
    (run,) = source_format("zeek-conn").decode([of(ZEEK), of(ZEEK)]).runs
    assert run.group(None, Targets()).target.tolist() == [-1]
    assert run.group(["a", None], Targets()).edges == [
        ("a", "ip:10.0.0.1", "ip:10.0.0.2", 80, 6),
        (None, "ip:10.0.0.1", "ip:10.0.0.2", 80, 6),
    ]
    assert run.hosts([0]) == ["ip:10.0.0.1"]


def test_a_hosts_name_is_bounded() -> None:
    (run,) = source_format("zeek-conn").decode([of(ZEEK, _node_name="n" * 5_000)]).runs
    assert len(run.hosts([0])[0]) == 256


def test_istios_names_of_servers() -> None:
    base = {
        "start_time": "2022-09-08T12:51:05Z",
        "downstream_remote_address": "[2001:db8::1]:43612",
        "response_code": 200,
    }
    cases: list[tuple[dict[str, Any], str, int]] = [
        ({"upstream_cluster": "outbound|80||cart.shop.svc.cluster.local"}, "shop/cart", 80),
        ({"upstream_cluster": "inbound|9080|http|page.default.svc.cluster.local"}, "default/page", 9080),
        ({"upstream_cluster": "inbound|9080||", "upstream_host": "10.0.0.7:9080"}, "ip:10.0.0.7", 9080),
        (
            {"upstream_cluster": "PassthroughCluster", "requested_server_name": "api.example.com"},
            "ext:example.com",
            -1,
        ),
        ({"upstream_cluster": "PassthroughCluster", "upstream_host": "1.2.3.4:443"}, "ip:1.2.3.4", 443),
        ({"upstream_cluster": "PassthroughCluster", "authority": "a.example.com:8443"}, "ext:example.com", 8443),
        ({"upstream_cluster": "backend", "upstream_host": "10.0.0.7:9080"}, "backend", 9080),
    ]
    for fields, name, port in cases:
        (edge,) = edges(source_format("istio-access").decode([of({**base, **fields})]))
        assert edge == ("ip:2001:db8::1", name, port, 6), fields
    (edge,) = edges(source_format("istio-access?cluster=eu").decode([of({**base, **cases[0][0]})]))
    assert edge[1] == "eu:shop/cart"


def test_every_verdict_survives_encoding() -> None:
    """Details of dead letters go into headers: no detail may hold what UTF-8 cannot."""
    value = json.dumps({**ZEEK, "ts": "\ud800"}).encode()
    for bad in source_format("zeek-conn").decode([value, b"\xff"]).rejected:
        msgspec.json.encode(bad.detail)


def test_hubbles_names_of_endpoints() -> None:
    """A workload, else the pod's owner, else an app label, else all labels that last, else names outside."""
    app, tier = "k8s:app=cart", "k8s:tier=web"
    cases: list[tuple[dict[str, Any], list[str], str]] = [
        ({"namespace": "n", "workloads": [{"name": "w", "kind": "Deployment"}], "labels": [app]}, [], "n/w"),
        ({"namespace": "n", "pod_name": "pod-7848d6c4d5-th9v2", "labels": [app]}, [], "n/pod"),
        ({"namespace": "n", "labels": [tier, app]}, [], "n/cart"),
        ({"labels": [tier, app, "k8s:io.kubernetes.pod.namespace=n"]}, [], "n/cart"),
        ({"namespace": "n", "labels": [tier, "k8s:pod-template-hash=x"]}, [], "label:n/tier=web"),
        ({"labels": [tier, "k8s:io.kubernetes.pod.namespace=n"]}, [], "label:n/tier=web"),
        ({"labels": ["reserved:world-ipv4"]}, ["b.example.org", "a.b.example.com."], "ext:example.com"),
        ({"labels": ["reserved:world-ipv4"]}, ["a.b.example.com", "b.example.org"], "ext:example.com"),
        ({"labels": ["cidr:1.1.1.0/24", "reserved:world"]}, [], "ip:1.1.1.1"),
        ({"labels": ["reserved:host", tier]}, ["a.example.com"], "reserved:host"),
    ]
    for end, names, expected in cases:
        flow = {
            "source": {"pod_name": "p"},
            "destination": end,
            "destination_names": names,
            "time": "2024-07-08T10:09Z",
        }
        record = json.dumps({"flow": {**flow, "IP": {"destination": "1.1.1.1"}}}).encode()
        assert edges(source_format("hubble").decode([record]))[0][1] == expected, end
    record = json.dumps({"flow": {**flow, "destination": {"namespace": "n", "labels": [tier]}}}).encode()
    eu = edges(source_format("hubble:eu").decode([record]))[0][1]
    assert eu == "label:n/io.cilium.k8s.policy.cluster=eu,tier=web"
    world = json.dumps({"flow": {**flow, "destination": {"labels": ["reserved:world-ipv6"]}, "destination_names": []}})
    assert edges(source_format("hubble").decode([world.encode()]))[0][1] == "reserved:world"


def test_loose_integers_say_the_same_whatever_stands_beside() -> None:
    values = [0, 7, -1, True, None, "-", "", "7", "-7", "x", 1.0, 2**61, 2**62, 2**63, 10**30, "٣"]
    alone = [int(loose_integers([value])[0]) for value in values]
    assert alone == [0, 7, -2, 1, -1, -1, -1, 7, -2, -2, 1, 2**61, -2, -2, -2, 3]
    assert loose_integers(values).tolist() == alone
    assert loose_integers([0, 7, 2**61, 2**62]).tolist() == [0, 7, 2**61, -2]


def test_sensors_tell_of_much_loss_however_records_are_spelled() -> None:
    loss = {"ts": 100.25, "peer": "w", "gaps": 3, "acks": 9, "percent_lost": 33.3}
    named = {"_path": "capture_loss", **loss}
    conn = of(ZEEK)
    values = [
        of(named),
        conn,
        of({"@stream": "capture_loss", **loss}),
        of({"capture_loss": loss}),
        json.dumps({"message": json.dumps(named)}).encode(),
        b"[" + conn + b"," + of(named) + b"]",
        conn,
        of(named, percent_lost=9.9),
        of(loss),
        of({**named, "id.orig_h": "10.0.0.1"}),
        of({**ZEEK, **named}),
    ]
    reading = source_format("zeek-conn")
    decoded = reading.decode(values)
    coordinates = [(0, 0), (2, 0), (3, 0), (4, 0), (5, 1)]
    assert decoded.signals == [LossSignal(m, i, "capture_loss", "w", 3, 100_250) for m, i in coordinates]
    assert decoded.skipped == {"capture_loss": 8} and [bad.message for bad in decoded.rejected] == [8]
    alone = [entry for n, value in enumerate(values) for entry in as_seen(reading.decode([value])) if entry[2] != "x"]
    assert [entry[2:] for entry in as_seen(decoded)] == [entry[2:] for entry in alone]
    drops = {"kernel_packets_delta": 100, "kernel_drops_delta": 10}
    stats = {"event_type": "stats", "timestamp": "1970-01-01T00:00:01Z", "host": "h", "stats": {"capture": drops}}
    few, none = {"capture": {**drops, "kernel_drops_delta": 9}}, {"capture": {"kernel_drops": 7}}
    suricata = source_format("suricata-eve").decode([of(stats), of(stats, stats=few), of(stats, stats=none)])
    assert suricata.signals == [LossSignal(0, 0, "kernel_drops", "h", 10, 1_000)] and suricata.skipped == {"stats": 3}
    assert source_format("suricata-eve").decode([of(stats, stats=7)]).skipped == {"stats": 1}
