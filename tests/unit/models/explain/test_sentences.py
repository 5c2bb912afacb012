"""Explanations say what the evidence says, for every kind and activity, and outside names cannot harm them."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.explain.sentences import Explanation, describe
from models.explain.wording import MAX_NAME_CHARS, duration, instant, name_of, number, port_of, quantity
from schemas.drift import Activity, DriftKind, EdgeRef, Evidence

WINDOW_MS = 10_000
SCALE = {"µs": 1, "ms": 1_000, "s": 1_000_000, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

SIGNALS = {
    DriftKind.NEW_SERVICE: ("service_presence", "calls", "first-seen"),
    DriftKind.NEW_EDGE: ("edge_presence", "calls", "first-seen"),
    DriftKind.NEW_PORT: ("port_presence", "calls", "first-seen"),
    DriftKind.NEW_EXTERNAL_EGRESS: ("egress_presence", "calls", "first-seen"),
    DriftKind.REMOVED_EDGE: ("silent_windows", "windows", "silence"),
    DriftKind.FAN_OUT_BURST: ("fan_out", "peers", "burst"),
    DriftKind.DENIED_BURST: ("denied_per_window", "calls", "burst"),
    DriftKind.RATE_SURGE: ("calls_per_window", "calls", "robust-z"),
    DriftKind.RATE_DROP: ("calls_per_window", "calls", "robust-z"),
    DriftKind.BYTES_SURGE: ("bytes_per_window", "bytes", "robust-z"),
    DriftKind.ERROR_INCREASE: ("error_ratio", "ratio", "robust-z"),
    DriftKind.LATENCY_INCREASE: ("latency_p95_us", "us", "robust-z"),
    DriftKind.BEACONING: ("interval_dispersion", "ratio", "beacon"),
    DriftKind.EXPOSED_DATASTORE: ("datastore_answers", "calls", "first-seen"),
    DriftKind.CROSS_NAMESPACE: ("namespace_edge", "calls", "first-seen"),
    DriftKind.POLICY_VIOLATION: ("denied_by_policy", "calls", "policy:main/no-db"),
    DriftKind.TELEMETRY_LOSS: ("lost_records", "records", "lost_events"),
    DriftKind.SAMPLING_CHANGE: ("sampling_factor", "", "sampling"),
    DriftKind.SILENT_HOST: ("silent_windows", "windows", "silence"),
    DriftKind.DELIVERY_LAG: ("late_ratio", "ratio", "lateness"),
}


def evidence_for(kind: DriftKind, observed: float = 250.0, expected: float = 12.5, score: float = 9.25) -> Evidence:
    signal, unit, detector = SIGNALS[kind]
    return Evidence(signal, observed, expected, unit, score, 77, 24, detector)


def explain(kind: DriftKind, activity: Activity = Activity.CREATE, **changes: object) -> Explanation:
    arguments: dict[str, object] = {
        "kind": kind,
        "src": "shop/frontend",
        "dst": "" if kind in (DriftKind.NEW_SERVICE, DriftKind.FAN_OUT_BURST) else "shop/cart",
        "port": -1,
        "protocol": -1,
        "evidence": (evidence_for(kind),),
        "edges": (EdgeRef("shop/frontend", "shop/cart", 7070, 6),),
        "edges_total": 1,
        "activity": activity,
        "window_ms": WINDOW_MS,
    }
    return describe(**{**arguments, **changes})  # type: ignore[arg-type]


def value_after(text: str, phrase: str) -> float:
    """Read a quantity back from a sentence, in the unit of its evidence."""
    match = re.search(rf"{phrase}(-?[\d,]+(?:\.\d+)?) ?(µs|ms|s|B|KiB|MiB|GiB|TiB|%)?(?![A-Za-z])", text)
    assert match, (phrase, text)
    plain = float(match[1].replace(",", ""))
    return plain / 100 if match[2] == "%" else plain * SCALE.get(match[2] or "", 1)


@pytest.mark.parametrize("kind", DriftKind)
@pytest.mark.parametrize("activity", Activity)
def test_every_kind_and_activity_is_explained(kind: DriftKind, activity: Activity) -> None:
    explanation = explain(kind, activity, close_reason="recovered" if activity is Activity.CLOSE else "")
    assert "shop/frontend" in explanation.title and "shop/frontend" in explanation.message
    assert SIGNALS[kind][2] in explanation.message
    assert explanation.message.endswith(".")
    assert explanation.title.startswith("Closed: ") == (activity is Activity.CLOSE)
    assert bool(explanation.checks) == (activity is not Activity.CLOSE)
    assert not any("{" in check or "  " in check for check in explanation.checks)


def test_kinds_read_differently() -> None:
    explanations = [explain(kind) for kind in DriftKind]
    assert len({explanation.title for explanation in explanations}) == len(DriftKind)
    assert len({explanation.checks for explanation in explanations}) == len(DriftKind)


@pytest.mark.parametrize("kind", DriftKind)
@given(
    observed=st.floats(0, 2**42).map(lambda value: float(f"{value:.6g}")),
    expected=st.floats(0, 2**42).map(lambda value: float(f"{value:.6g}")),
)
def test_numbers_in_the_text_are_those_of_the_evidence(kind: DriftKind, observed: float, expected: float) -> None:
    item = evidence_for(kind, observed, expected)
    message = explain(kind, evidence=(item,)).message
    observed_phrase = "time: " if item.detector == "first-seen" else " was "
    assert value_after(message, observed_phrase) == pytest.approx(observed, rel=6e-4)
    assert value_after(message, "expected ") == pytest.approx(expected, rel=6e-4)
    assert value_after(message, ["none in ", "against "][item.detector != "first-seen"]) == item.history
    if item.detector == "robust-z":
        assert value_after(message, "z-score ") == item.score
        assert value_after(message, "9.25 from ") == item.sample


def test_latency_sentence_in_full() -> None:
    item = Evidence("latency_p95_us", 258_217.0, 8_123.45, "us", 45.21, 118, 24, "robust-z")
    explanation = explain(DriftKind.LATENCY_INCREASE, evidence=(item,), edges=())
    assert explanation.title == "Latency of shop/frontend -> shop/cart rose"
    assert explanation.message == (
        "shop/frontend -> shop/cart: p95 latency was 258.2 ms, expected 8.123 ms, 31.8 times as much "
        "(window 10 s; robust z-score 45.21 from 118 calls against 24 windows of history). Detector: robust-z."
    )


def test_beacon_sentences_in_full() -> None:
    evidence = (
        Evidence("interval_dispersion", 0.0272, 1.0, "ratio", 0.0, 80, 2_166, "beacon"),
        Evidence("contact_interval", 270_800_000.0, 270_800_000.0, "us", 0.0, 80, 2_166, "beacon"),
        Evidence("usual_bytes_out", 80.0, 80.0, "bytes", 0.0, 76, 2_166, "beacon"),
        Evidence("usual_bytes_in", 5_327.0, 5_327.0, "bytes", 0.0, 76, 2_166, "beacon"),
    )
    edge = EdgeRef("shop/web", "ext:net/93.184.0.0/16", 443, 6)
    explanation = explain(
        DriftKind.BEACONING, src=edge.src, dst=edge.dst, port=443, protocol=6, evidence=evidence, edges=(edge,)
    )
    name = "shop/web -> ext:net/93.184.0.0/16 (443/tcp)"
    assert explanation.title == f"Clock-like contact {name}"
    assert explanation.message == (
        f"{name}: variance of the intervals between contacts as a share of chance was 2.72 %, expected 100 % "
        "(window 10 s; from 80 contacts against 2,166 windows of history). Detector: beacon. "
        f"{name}: in contact every 270.8 s on average, over 6.017 h (80 contacts counted). Detector: beacon. "
        f"{name}: 80 B sent in each call of most contacts, over 6.017 h (76 contacts counted). Detector: beacon. "
        f"{name}: 5.202 KiB received in each call of most contacts, over 6.017 h (76 contacts counted). "
        "Detector: beacon."
    )


@pytest.mark.parametrize(
    ("kind", "signal", "is_inbound", "title", "facts"),
    [
        (
            DriftKind.NEW_PORT,
            "exposed_port",
            True,
            "shop/web (9200/tcp) newly answers callers outside",
            "shop/web (9200/tcp): a caller outside the estate was answered on this port for the first time: 250 calls",
        ),
        (
            DriftKind.NEW_PORT,
            "outside_port",
            False,
            "New port called outside by shop/web (9200/tcp)",
            "shop/web (9200/tcp): this port was called outside the estate for the first time: 250 calls seen",
        ),
        (
            DriftKind.RATE_SURGE,
            "outside_calls_per_window",
            True,
            "Calls from outside to shop/web surged",
            "shop/web: calls across the border in a window was 250 calls, expected 12.5 calls, 20 times as much",
        ),
        (
            DriftKind.RATE_SURGE,
            "outside_callers",
            True,
            "Calls from outside to shop/web surged",
            "shop/web: distinct callers from outside in a window was 250 peers, expected 12.5 peers, 20 times as much",
        ),
        (
            DriftKind.RATE_SURGE,
            "outside_calls_per_window",
            False,
            "Calls to the outside by shop/web surged",
            "shop/web: calls across the border in a window was 250 calls",
        ),
    ],
)
def test_what_a_service_does_with_the_whole_outside_names_the_service_alone(
    kind: DriftKind, signal: str, is_inbound: bool, title: str, facts: str
) -> None:
    detector = "first-seen" if kind is DriftKind.NEW_PORT else "burst"
    unit = "peers" if signal == "outside_callers" else "calls"
    expected = 0.0 if kind is DriftKind.NEW_PORT else 12.5
    item = Evidence(signal, 250.0, expected, unit, 0.0, 77, 24, detector)
    port = 9200 if kind is DriftKind.NEW_PORT else -1
    ends: dict[str, Any] = {"src": "", "dst": "shop/web"} if is_inbound else {"src": "shop/web", "dst": ""}
    explanation = explain(kind, evidence=(item,), port=port, protocol=6 if port >= 0 else -1, **ends)
    assert explanation.title == title
    assert explanation.message.startswith(facts)


def test_new_egress_sentence_in_full() -> None:
    item = Evidence("egress_presence", 37.0, 0.0, "calls", 0.0, 37, 24, "first-seen")
    explanation = explain(
        DriftKind.NEW_EXTERNAL_EGRESS,
        dst="ext:203.0.113.7",
        evidence=(item,),
        edges=(EdgeRef("shop/frontend", "ext:203.0.113.7", 443, 6),),
        first_seen_ms=1_661_146_930_007,
    )
    assert explanation.message == (
        "shop/frontend -> ext:203.0.113.7: this destination outside the estate was called for the first time: "
        "37 calls seen, expected 0 calls, none in 24 windows of history (4 min). Detector: first-seen. "
        "Edges concerned: shop/frontend -> ext:203.0.113.7 (443/tcp). First sign at 2022-08-22T05:42:10.007Z."
    )


def test_a_drop_has_no_times_as_much_and_zero_no_ratio() -> None:
    assert (
        "times as much" not in explain(DriftKind.RATE_DROP, evidence=(evidence_for(DriftKind.RATE_DROP, 1, 9),)).message
    )
    surge = evidence_for(DriftKind.RATE_SURGE, 9, 0)
    assert "times as much" not in explain(DriftKind.RATE_SURGE, evidence=(surge,)).message


def test_a_source_that_loses_data_says_what_is_withheld_until_it_is_over() -> None:
    item = Evidence("lost_records", 17.0, 0.0, "records", 0.0, 2, 24, "lost_events:HUBBLE_RING_BUFFER")
    arguments = {"src": "host:worker-1", "dst": "", "evidence": (item,), "edges": (), "edges_total": 0}
    explanation = explain(DriftKind.TELEMETRY_LOSS, **arguments)
    assert explanation.title == "Source host:worker-1 loses records"
    assert explanation.message == (
        "host:worker-1: what the source says it lost in a window was 17 records, expected 0 records "
        "(window 10 s; from 2 reports against 24 windows of history). Detector: lost_events:HUBBLE_RING_BUFFER. "
        "Meanwhile removed edges and drops of call rates of this tenant and lane are withheld."
    )
    closed = explain(DriftKind.TELEMETRY_LOSS, Activity.CLOSE, close_reason="recovered", **arguments)
    assert "withheld" not in closed.message and closed.message.startswith("Recovered: there was no further sign of it")
    factor = Evidence("sampling_factor", 50.0, 1.0, "", 0.0, 300, 24, "sampling")
    changed = explain(DriftKind.SAMPLING_CHANGE, **{**arguments, "evidence": (factor,)})
    assert "sampling factor was 50, expected 1, 50 times as much" in changed.message
    assert changed.message.endswith("are learned anew; until then none of them is judged.")


@pytest.mark.parametrize("reason", ["recovered", "accepted", "returned", "unconfirmed"])
def test_close_says_why(reason: str) -> None:
    explanation = explain(DriftKind.NEW_EDGE, Activity.CLOSE, close_reason=reason)
    assert reason.removeprefix("un") in explanation.message.lower()
    assert "Last evidence:" in explanation.message


def test_update_says_that_it_is_one() -> None:
    assert explain(DriftKind.NEW_EDGE, Activity.UPDATE).message.startswith("Update of an open finding.")


def test_many_edges_are_counted_not_listed() -> None:
    edges = tuple(EdgeRef("shop/frontend", f"shop/s{n:02d}", 80, 6) for n in range(50))
    message = explain(DriftKind.FAN_OUT_BURST, edges=edges, edges_total=333).message
    assert "shop/s04" in message and "shop/s05" not in message and "and 328 more edges." in message


@given(
    src=st.text(max_size=400),
    dst=st.text(max_size=400),
    reason=st.text(max_size=400),
    kind=st.sampled_from(DriftKind),
    activity=st.sampled_from(Activity),
)
def test_hostile_names_stay_on_one_short_printable_line(
    src: str, dst: str, reason: str, kind: DriftKind, activity: Activity
) -> None:
    edges = tuple(EdgeRef(src, f"{dst}{n}") for n in range(9))
    explanation = explain(kind, activity, src=src, dst=dst, close_reason=reason, edges=edges, edges_total=9)
    for text in (explanation.title, explanation.message, *explanation.checks):
        assert text.isprintable()
        text.encode()
        assert len(text) < 12 * (10 * MAX_NAME_CHARS + 20)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("shop/cart-v2", "shop/cart-v2"),
        ("ext:203.0.113.0/24", "ext:203.0.113.0/24"),
        ("a\nb", '"a\\x0ab"'),
        ("\x1b[31mred", '"\\x1b[31mred"'),
        ("cart. All is well", '"cart. All is well"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("\u202eevil", '"\\u202eevil"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("{src}", '"{src}"'),
        ("", '""'),
        ("日本", '"日本"'),
        ("x" * 300, "x" * 60 + "..." + "x" * 16),
    ],
)
def test_names_are_shown_safely(name: str, shown: str) -> None:
    assert name_of(name) == shown


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "calls", "0 calls"),
        (1.0, "calls", "1 call"),
        (1234567.0, "calls", "1,234,567 calls"),
        (42.3701, "calls", "42.37 calls"),
        (999.0, "us", "999 µs"),
        (1500.0, "us", "1.5 ms"),
        (36_799_850.0, "us", "36.8 s"),
        (0.1 + 0.2, "ratio", "30 %"),
        (0.000123456, "ratio", "0.01235 %"),
        (1e-05, "ratio", "0.001 %"),
        (65_536.0, "bytes", "64 KiB"),
        (4.39805e12, "bytes", "4 TiB"),
        (3.0, "qps", "3 qps"),
        (3.5, "", "3.5"),
        (float("nan"), "calls", "unknown"),
        (float("inf"), "us", "unknown"),
    ],
)
def test_quantities_read_well(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15))
def test_numbers_never_use_exponents(value: float) -> None:
    assert re.fullmatch(r"-?[\d,]+(\.\d+)?", number(value))


def test_durations_and_instants() -> None:
    assert [duration(ms) for ms in (500, 10_000, 90_000, 5_400_000, 1_209_600_000)] == [
        "500 ms",
        "10 s",
        "1.5 min",
        "1.5 h",
        "14 d",
    ]
    assert instant(0) == "1970-01-01T00:00:00.000Z"
    assert instant(1 << 62) == f"{1 << 62} ms"


def test_ports_say_what_is_known() -> None:
    assert [port_of(443, 6), port_of(443, -1), port_of(-1, 17), port_of(-1, -1), port_of(1, 99)] == [
        "443/tcp",
        "port 443",
        "udp",
        "",
        "1/protocol 99",
    ]
