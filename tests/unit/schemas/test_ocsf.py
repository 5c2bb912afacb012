"""Drift events are valid OCSF Detection Findings for every kind and activity, and come back as they went."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.drift import Activity, AlertReason, DriftEvent, DriftKind, EdgeRef, Evidence, Severity, Verdict
from schemas.errors import WireFormatError
from schemas.ocsf import EVENT_TYPE, cloudevents_headers, decode_event, encode_event, event_key, number_text
from tests.unit.schemas.events import START_MS, WINDOW_MS, make_event

RULES = Path(__file__).parents[3] / "schemas/json/ocsf-detection-finding.v1.json"


OCSF = jsonschema.Draft202012Validator(json.loads(RULES.read_text()))


@pytest.fixture(scope="module")
def ocsf() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(OCSF.schema)
    return OCSF


def sent(event: DriftEvent) -> dict[str, Any]:
    return dict(json.loads(encode_event(event)))


@pytest.mark.parametrize("kind", DriftKind)
@pytest.mark.parametrize("activity", Activity)
@pytest.mark.parametrize("severity", Severity)
def test_every_event_is_a_valid_detection_finding(
    ocsf: jsonschema.Draft202012Validator, kind: DriftKind, activity: Activity, severity: Severity
) -> None:
    event = make_event(kind, activity, severity=severity)
    ocsf.validate(sent(event))
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize("ends", [{"src": "", "dst": "shop/web"}, {"src": "shop/web", "dst": ""}])
@pytest.mark.parametrize("kind", [DriftKind.NEW_PORT, DriftKind.RATE_SURGE])
def test_events_of_a_service_and_the_whole_outside_name_the_service(
    ocsf: jsonschema.Draft202012Validator, kind: DriftKind, ends: dict[str, Any]
) -> None:
    edge = EdgeRef("ext:net/93.184.0.0/16", "shop/web", 443, 6)
    event = make_event(kind, edges=(edge,), **ends)
    finding = sent(event)
    ocsf.validate(finding)
    assert decode_event(encode_event(event)) == event
    assert [(resource["uid"], resource["type"]) for resource in finding["resources"]] == [("shop/web", "Service")]
    assert finding["anomaly_analyses"][0]["analysis_targets"] == [{"name": "shop/web", "type": "Service"}]


@pytest.mark.parametrize("missing", ["metadata", "finding_info", "time", "severity_id", "activity_id", "type_uid"])
def test_the_rules_notice_what_is_missing(ocsf: jsonschema.Draft202012Validator, missing: str) -> None:
    finding = sent(make_event())
    del finding[missing]
    assert not ocsf.is_valid(finding)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("activity_id",), 4),
        (("type_uid",), 200402),
        (("severity",), "Low"),
        (("status_id",), 7),
        (("time",), "2025-11-22T00:00:00Z"),
        (("metadata", "version"), "1.9.0"),
        (("finding_info", "uid"), ""),
        (("anomaly_analyses", 0, "anomalies", 0, "observations", 0, "value"), 258217),
        (("evidences", 0, "connection_info", "direction_id"), 5),
        (("surprise",), 1),
    ],
)
def test_the_rules_notice_what_is_wrong(
    ocsf: jsonschema.Draft202012Validator, path: tuple[str | int, ...], wrong: object
) -> None:
    finding: Any = sent(make_event())
    place = finding
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = wrong
    assert not ocsf.is_valid(finding)


name = st.text(min_size=1, max_size=40)
port = st.integers(-1, 65_535)
protocol = st.integers(-1, 255)
whole = st.integers(0, 1 << 53)
real = st.floats(allow_nan=False, allow_infinity=False)
edge = st.builds(
    EdgeRef, src=name, dst=name.flatmap(lambda n: st.sampled_from([n, f"ext:{n}"])), port=port, protocol=protocol
)
evidence = st.builds(
    Evidence,
    signal=name,
    observed=real,
    expected=real,
    unit=st.text(max_size=9),
    score=real,
    sample=whole,
    history=whole,
    detector=name,
)
events = st.builds(
    DriftEvent,
    event_id=name,
    finding_id=name,
    fingerprint=name,
    incident_id=st.text(max_size=9),
    tenant=name,
    lane=name,
    generation=whole,
    kind=st.sampled_from(DriftKind),
    activity=st.sampled_from(Activity),
    episode=whole,
    severity=st.sampled_from(Severity),
    risk_score=st.integers(0, 100),
    confidence=st.integers(0, 100),
    is_alert=st.booleans(),
    is_early=st.booleans(),
    time_ms=st.integers(0, 1 << 43),
    window_start_ms=st.integers(0, 1 << 43),
    window_end_ms=st.integers(0, 1 << 43),
    first_seen_ms=st.integers(0, 1 << 43),
    src=name | st.sampled_from(["ext:1.2.3.4", "ext:api.example.com", "ext:::1"]),
    dst=st.text(max_size=40),
    port=port,
    protocol=protocol,
    edges=st.lists(edge, max_size=4).map(tuple),
    edges_total=whole,
    evidence=st.lists(evidence, max_size=3).map(tuple),
    title=st.text(max_size=40),
    message=st.text(max_size=40),
    checks=st.lists(st.text(min_size=1, max_size=20), max_size=3).map(tuple),
    close_reason=st.text(max_size=20),
    verdict=st.none()
    | st.builds(
        Verdict,
        reason=st.sampled_from(AlertReason),
        effect=st.integers(0, 100),
        windows=whole,
        windows_alike=whole,
        budget=whole,
        alerts=whole,
        level=st.integers(0, 101),
        feedback=st.integers(-40, 40),
        note=name,
    ),
)


@given(events)
def test_any_event_comes_back_as_it_went(event: DriftEvent) -> None:
    data = encode_event(event)
    assert decode_event(data) == event
    assert encode_event(decode_event(data)) == data


@given(event=events)
def test_any_event_is_valid_ocsf(event: DriftEvent) -> None:
    OCSF.validate(sent(event))


def test_where_things_stand() -> None:
    event = make_event()
    finding = sent(event)
    assert finding["metadata"]["uid"] == event.event_id
    assert finding["metadata"]["correlation_uid"] == event.incident_id
    assert finding["metadata"]["tenant_uid"] == "acme"
    assert finding["finding_info"]["uid"] == event.finding_id
    assert finding["finding_info"]["uid_alt"] == event.fingerprint
    assert finding["type_uid"] == 200401
    assert finding["time"] == START_MS + WINDOW_MS
    assert finding["finding_info"]["attacks"][0]["technique"]["uid"] == "T1499"
    assert finding["unmapped"]["drift"]["evidence"][0]["observed"] == 258217.0


def test_observed_stands_against_expected() -> None:
    (analysis,) = sent(make_event())["anomaly_analyses"]
    assert analysis["analysis_targets"] == [{"name": "payments/checkout -> payments/cart", "type": "Service Edge"}]
    (anomaly,), (baseline,) = analysis["anomalies"], analysis["baselines"]
    assert anomaly["observation_parameter"] == baseline["observation_parameter"] == "latency_p95_us"
    assert anomaly["observations"][0]["value"] == "258217" and anomaly["observations"][0]["count"] == 118
    assert baseline["observations"] == [{"value": "8123.45", "count": 24}]


def test_egress_names_the_address() -> None:
    finding = sent(make_event(DriftKind.NEW_EXTERNAL_EGRESS))
    (artifact,) = finding["evidences"]
    assert artifact["dst_endpoint"] == {"name": "ext:203.0.113.7", "ip": "203.0.113.7", "port": 443}
    assert artifact["connection_info"]["direction"] == "Outbound"
    assert {
        "name": "evidences[].dst_endpoint.ip",
        "type_id": 2,
        "type": "IP Address",
        "value": "203.0.113.7",
    } in finding["observables"]
    assert [resource["uid"] for resource in finding["resources"]] == ["payments/checkout"]


@pytest.mark.parametrize(
    ("service", "found"),
    [
        ("ext:api.stripe.com", {"name": "ext:api.stripe.com", "domain": "api.stripe.com"}),
        ("ext:2001:db8::1", {"name": "ext:2001:db8::1", "ip": "2001:db8::1"}),
        ("ext:203.0.113.0/24", {"name": "ext:203.0.113.0/24"}),
        ("ext:users", {"name": "ext:users"}),
        ("ext:net/203.0.0.0/16", {"name": "ext:net/203.0.0.0/16"}),
        ("shop/cart", {"name": "shop/cart", "svc_name": "cart"}),
        ("ip:10.0.0.7", {"name": "ip:10.0.0.7", "svc_name": "ip:10.0.0.7", "ip": "10.0.0.7"}),
        ("net:10.0.0.0/24", {"name": "net:10.0.0.0/24", "svc_name": "net:10.0.0.0/24"}),
    ],
)
def test_endpoints_say_what_is_known(service: str, found: dict[str, str]) -> None:
    finding = sent(make_event(edges=(EdgeRef("a", service),)))
    assert finding["evidences"][0]["dst_endpoint"] == found


def test_hosts_of_a_lan_are_searched_by_address_and_networks_have_no_namespace() -> None:
    finding = sent(make_event(src="ip:10.0.0.7", dst="net:10.1.0.0/16", edges=(EdgeRef("ip:10.0.0.7", "shop/db"),)))
    observed = {(o["name"], o["type"], o["value"]) for o in finding["observables"]}
    assert ("evidences[].src_endpoint.ip", "IP Address", "10.0.0.7") in observed
    assert [(r["name"], r.get("namespace")) for r in finding["resources"]] == [
        ("ip:10.0.0.7", None),
        ("net:10.1.0.0/16", None),
    ]


def test_close_is_resolved_and_says_why() -> None:
    finding = sent(make_event(activity=Activity.CLOSE))
    assert (finding["status"], finding["status_detail"], finding["is_alert"]) == ("Resolved", "recovered", False)
    assert "remediation" not in finding and "created_time" not in finding["finding_info"]


def test_later_fields_are_ignored_but_other_messages_are_refused() -> None:
    event = make_event()
    later = sent(event) | {"added_in_v1_1": {"x": 1}}
    assert decode_event(json.dumps(later).encode()) == event
    for bad in (b"", b"{}", b"\xff", b"[" * 100_000, encode_event(event)[:-1], b'{"class_uid": 2004}'):
        with pytest.raises(WireFormatError):
            decode_event(bad)


def test_key_keeps_a_finding_together() -> None:
    create, close = make_event(), make_event(activity=Activity.CLOSE)
    assert event_key(create) == event_key(close) == f"acme:{create.fingerprint}".encode()
    assert create.event_id != close.event_id


def test_headers_are_cloudevents_in_binary_mode() -> None:
    event = make_event(tenant="a/b ü")
    headers = dict(cloudevents_headers(event))
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": event.event_id.encode(),
        "ce_type": EVENT_TYPE.encode(),
        "ce_source": b"/secureguard-drift/a%2Fb%20%C3%BC/default",
        "ce_time": b"2025-11-22T22:20:00.000Z",
        "ce_subject": event.finding_id.encode(),
        "ce_dataschema": b"urn:secureguard:drift:schema:v1:drift-event",
        "content-type": b"application/json",
    }


@given(events)
def test_headers_are_ascii_whatever_the_names(event: DriftEvent) -> None:
    headers = dict(cloudevents_headers(event))
    assert headers["ce_source"].isascii() and headers["ce_time"].endswith(b"Z")


@given(real)
def test_values_are_text_that_reads_back_exactly(value: float) -> None:
    assert float(number_text(value)) == value


def test_encoding_is_deterministic_and_plain_json() -> None:
    event = make_event()
    assert encode_event(event) == encode_event(msgspec.structs.replace(event))
    assert msgspec.json.decode(encode_event(event)) == sent(event)
