"""Exposed data stores, namespaces that newly meet, and declared rules that are broken."""

from typing import Any

import msgspec
import numpy as np
import pytest

from models.graph.machine import Machine
from models.graph.policies import PolicySet, read_policy_document
from models.graph.snapshot import mark_clean, restore, take
from schemas.documents import MAX_DOCUMENTS
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.errors import CheckpointError
from schemas.flow import Flow
from schemas.policies import POLICIES
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import DETECTION, Feed, in_window, judge, story, usual

EXPOSED, CROSSING, VIOLATED = DriftKind.EXPOSED_DATASTORE, DriftKind.CROSS_NAMESPACE, DriftKind.POLICY_VIOLATION
ANSWERED: dict[str, Any] = {"errors": 0, "bytes_out": 80, "bytes_in": 5_000}
DENY = {"rules": [{"name": "no-pay", "action": "deny", "from": ["shop/web"], "to": ["shop/pay"]}]}


def known() -> list[Flow]:
    return usual(range(6)) + usual(range(6), src="data/api", dst="data/db")


def of_kind(events: list[DriftEvent], kind: DriftKind) -> list[DriftEvent]:
    return [e for e in events if e.kind is kind and e.activity is Activity.CREATE]


@pytest.mark.parametrize(
    ("changes", "fires"),
    [
        ({}, True),
        ({"port": 6379}, True),
        ({"port": 443}, False),
        ({"protocol": "udp"}, False),
        ({"errors": 1, "bytes_in": 0}, False),
        ({"src": "data/api"}, False),
        ({"exposed_min_calls": 4}, False),
        ({"exposed_min_calls": 0}, False),
    ],
)
def test_a_data_store_that_answers_the_outside_is_told(changes: dict[str, Any], fires: bool) -> None:
    settings = {name: value for name, value in changes.items() if name == "exposed_min_calls"}
    flow = {"src": "ext:net/203.0", "dst": "data/db", "port": 5432, **ANSWERED, **changes}
    flows = in_window(6, 3, **{name: value for name, value in flow.items() if name not in settings})
    found = of_kind(judge([*known(), *flows], **settings).events, EXPOSED)
    assert [(e.src, e.dst, e.port, e.is_alert) for e in found] == (
        [("", "data/db", flow["port"], True)] if fires else []
    )
    if found:
        assert found[0].evidence[0].observed == 3 and found[0].edges[0].src == "ext:net/203.0"


def test_an_exposed_port_is_told_once() -> None:
    outside = [
        f for n in range(6, 20) for f in in_window(n, 1, src=f"ext:net/{n}", dst="data/db", port=5432, **ANSWERED)
    ]
    assert len(of_kind(judge(sorted(known() + outside, key=lambda f: f.time_ms)).events, EXPOSED)) == 1


def test_namespaces_that_newly_meet_are_one_finding_with_their_edges() -> None:
    new = [flow for dst in ("data/db", "data/api") for flow in in_window(6, 2, src="shop/web", dst=dst)]
    (event,) = of_kind(judge(known() + new).events, CROSSING)
    assert (event.src, event.dst, event.edges_total, event.is_early) == ("shop/*", "data/*", 2, False)
    assert event.evidence[0].observed == 4
    assert "a service of this namespace called one of the other for the first time" in event.message


@pytest.mark.parametrize(
    ("src", "dst"), [("shop/web", "shop/pay"), ("shop/web", "new/db"), ("web", "data/db"), ("ext:net/1", "data/db")]
)
def test_other_new_edges_cross_no_namespaces(src: str, dst: str) -> None:
    assert not of_kind(judge(known() + in_window(6, 2, src=src, dst=dst)).events, CROSSING)


def test_a_second_edge_between_namespaces_is_only_a_new_edge() -> None:
    flows = known() + in_window(6, 1, src="shop/web", dst="data/db") + in_window(7, 1, src="shop/cart", dst="data/db")
    assert len(of_kind(judge(flows).events, CROSSING)) == 1
    assert not of_kind(judge(flows, crossing_min_calls=0).events, CROSSING)


def feed_of(*documents: dict[str, Any], logic: int = 3) -> Feed:
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    feed.logic = logic
    for number, document in enumerate(documents):
        feed.control(msgspec.json.encode(document), kind=POLICIES, name=f"doc-{number}")
    return feed


def run(feed: Feed, windows: range, dst: str = "shop/pay", **changes: Any) -> None:
    for index in windows:
        feed.send(in_window(index, 2, dst=dst, **changes))


def test_a_denied_call_is_a_violation_known_or_not_and_ends() -> None:
    feed = feed_of(DENY)
    run(feed, range(8))
    run(feed, range(8, 20), dst="shop/cart")
    (event,) = of_kind(feed.output.events, VIOLATED)
    assert (event.src, event.dst, event.evidence[0].detector) == ("shop/web", "shop/pay", "policy:doc-0/no-pay")
    assert story(feed.output.events, VIOLATED) == [(VIOLATED, "create", 3, ""), (VIOLATED, "close", 12, "recovered")]
    assert "calls in a window that a declared rule denies" in event.message


def test_policies_hold_from_their_point_of_the_log_and_for_their_tenant() -> None:
    feed = feed_of()
    run(feed, range(6))
    feed.control(msgspec.json.encode(DENY), kind=POLICIES, name="main")
    run(feed, range(6, 9))
    run(feed, range(6, 9), tenant="globex")
    feed.control(b"", kind=POLICIES, name="main")
    run(feed, range(9, 16))
    events = [(e.tenant, *s) for e, s in zip(feed.output.events, story(feed.output.events), strict=True)]
    # The window open when the rule came is judged by it, and so is none that closes after it went.
    assert [e for e in events if e[1] is VIOLATED] == [
        ("acme", VIOLATED, "create", 5, ""),
        ("acme", VIOLATED, "close", 12, "recovered"),
    ]


def test_a_new_edge_that_a_rule_denies_is_told_before_its_window_closes() -> None:
    feed = feed_of(DENY)
    run(feed, range(6), dst="shop/cart")
    output = feed.send([make_flow(60_500, src="shop/web", dst="shop/pay")])
    assert (VIOLATED, "early", 6, "") in story(output.events)
    (early,) = of_kind(output.events, VIOLATED)
    assert early.evidence[0].detector == "policy:doc-0/no-pay" and early.first_seen_ms == 60_500
    run(feed, range(7, 20), dst="shop/cart")
    assert story(feed.output.events, VIOLATED) == [
        (VIOLATED, "early", 6, ""),
        (VIOLATED, "update", 6, ""),
        (VIOLATED, "close", 11, "recovered"),
    ]


@pytest.mark.parametrize(
    ("flow", "settings", "fires"),
    [
        ({}, {}, True),
        ({"reporter": "server"}, {}, False),  # the client's report, should it come, may count no call of its own
        ({"time_ms": 45_000}, {}, False),  # late
        ({}, {"policy_min_calls": 2}, False),
        ({}, {"policy_min_calls": 0}, False),
        ({"src": "ext:net/1"}, {}, False),  # whether it is answered shows at the close
        ({"dst": "shop/cart"}, {}, False),
    ],
)
def test_what_a_record_still_to_come_may_undo_is_no_early_violation(
    flow: dict[str, Any], settings: dict[str, int], fires: bool
) -> None:
    rules = {"rules": [{"name": "no-pay", "action": "deny", "to": ["shop/pay"]}]}
    feed = Feed(make_lane(lateness_ms=0, detection=msgspec.structs.replace(DETECTION, **settings)))
    feed.control(msgspec.json.encode(rules), kind=POLICIES, name="main")
    run(feed, range(6), dst="shop/cart")
    values: dict[str, Any] = {"time_ms": 60_500, "src": "shop/web", "dst": "shop/pay", **flow}
    output = feed.send([make_flow(**values)])
    assert [event.is_early for event in of_kind(output.events, VIOLATED)] == [True] * fires


@pytest.mark.parametrize("seed", range(6))
def test_early_violations_are_among_the_settled_ones_however_records_are_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rules = [{"name": f"no-{port}", "action": "deny", "ports": [port]} for port in (81, 82)]

    def fed(flows: list[Flow], size: int) -> Feed:
        feed = Feed(make_lane(lateness_ms=5_000, detection=msgspec.structs.replace(DETECTION, policy_min_calls=2)))
        feed.control(msgspec.json.encode({"rules": rules}), kind=POLICIES, name="main")
        for start in range(0, len(flows), size):
            feed.send(flows[start : start + size])
        feed.end()
        return feed

    flows = usual(range(14))
    for _ in range(300):
        src, dst = rng.choice([f"shop/{n}" for n in range(20)] + ["ext:net/1", "ext:net/2"], 2, replace=False)
        changes = {"port": int(rng.integers(80, 83)), "reporter": str(rng.choice(["client", "server"]))}
        calls = int(rng.integers(1, 4))
        flows.append(make_flow(int(rng.integers(140_000)), src=str(src), dst=str(dst), calls=calls, **changes))
    flows.sort(key=lambda flow: flow.time_ms + int(rng.integers(6_000)))
    one, other = fed(flows, 1), fed(flows, 37)
    for feed in (one, other):
        told = [e for e in feed.output.events if e.kind is VIOLATED]
        early = {e.finding_id for e in told if e.is_early}
        assert early and early <= {e.finding_id for e in told if not e.is_early}
        assert not [e for e in told if e.close_reason == "unconfirmed"]


@pytest.mark.parametrize(
    ("rules", "edge", "denied"),
    [
        ([{"name": "a", "action": "deny"}], ("x", "y", 1, 6), "d/a"),
        ([{"name": "a", "action": "allow", "from": ["x"]}, {"name": "b", "action": "deny"}], ("x", "y", 1, 6), None),
        ([{"name": "a", "action": "allow", "from": ["x"]}, {"name": "b", "action": "deny"}], ("z", "y", 1, 6), "d/b"),
        ([{"name": "a", "action": "deny", "to": ["ext:*"], "ports": [80]}], ("x", "ext:b", 80, 6), "d/a"),
        ([{"name": "a", "action": "deny", "to": ["ext:*"], "ports": [80]}], ("x", "ext:b", 443, 6), None),
        ([{"name": "a", "action": "deny", "protocol": "udp"}], ("x", "y", 1, 6), None),
        ([{"name": "a", "action": "deny", "protocol": "udp"}], ("x", "y", 1, 17), "d/a"),
    ],
)
def test_the_first_rule_that_fits_decides(
    rules: list[Any], edge: tuple[str, str, int, int], denied: str | None
) -> None:
    policies = PolicySet().with_document("d", read_policy_document(msgspec.json.encode({"rules": rules})))
    assert policies.violated_by(("acme", *edge)) == denied


def test_documents_are_asked_by_name_and_bounded() -> None:
    allow = read_policy_document(b'{"rules":[{"name":"a","action":"allow"}]}')
    deny = read_policy_document(b'{"rules":[{"name":"d","action":"deny"}]}')
    edge = ("acme", "x", "y", 1, 6)
    assert PolicySet({"1": allow, "2": deny}).violated_by(edge) is None
    assert PolicySet({"2": allow, "1": deny}).violated_by(edge) == "1/d"
    full = PolicySet({str(number): allow for number in range(MAX_DOCUMENTS)})
    assert full.with_document("more", deny) is full
    assert full.with_document("0", deny).documents["0"] is deny


@pytest.mark.parametrize(
    "rules",
    [
        [{"name": "a", "action": "perhaps"}],
        [{"name": "a", "action": "deny"}, {"name": "a", "action": "deny"}],
        [{"name": "a", "action": "deny", "from": []}],
        [{"name": "a", "action": "deny", "protocol": "carrier-pigeon"}],
        [{"name": "a", "action": "deny", "ports": [70_000]}],
        [{"action": "deny"}],
        [{"name": "a", "action": "deny", "form": ["x"]}],
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_and_changes_nothing(rules: list[Any]) -> None:
    data = msgspec.json.encode({"rules": rules})
    with pytest.raises(ValueError, match=r"polic|rule|protocol"):
        read_policy_document(data)
    feed = feed_of(DENY)
    feed.control(data, kind=POLICIES, name="doc-0")
    assert feed.machine.policies["acme"].digests.keys() == {"doc-0"}
    assert feed.machine.policies["acme"].violated_by(("acme", "shop/web", "shop/pay", 1, 6)) == "doc-0/no-pay"


@pytest.mark.parametrize("logic", [1, 2])
def test_earlier_versions_know_no_policies(logic: int) -> None:
    feed = feed_of(DENY, logic=logic)
    run(feed, range(8))
    run(feed, range(8, 12), src="ext:net/203.0", dst="shop/pay", port=5432, **ANSWERED)
    assert not feed.machine.policies
    assert not {e.kind for e in feed.output.events} & {VIOLATED, EXPOSED, CROSSING}


def test_policies_outlive_restarts() -> None:
    feed = feed_of(DENY)
    run(feed, range(5))
    chunks = {name: chunk for name, chunk in take(feed.machine) if chunk is not None}
    mark_clean(feed.machine)
    assert [name for name, chunk in take(feed.machine) if name.startswith("/policies/") and chunk is None]
    again: Machine = restore(chunks)
    assert again.policies["acme"].digests == feed.machine.policies["acme"].digests
    run(feed, range(5, 30))
    output = [again.apply(n, record) for n, record in list(enumerate(feed.log))[again.offset + 1 :]]
    told = [event.event_id for part in output for event in part.events]
    assert told and told == [event.event_id for event in feed.output.events][-len(told) :]
    lost = {name: chunk for name, chunk in chunks.items() if not name.startswith("/policies/")}
    with pytest.raises(CheckpointError, match="lacks chunk"):
        restore(lost)


def test_one_record_or_many_say_the_same() -> None:
    flows = [make_flow(n * 1_000, dst="shop/pay") for n in range(100)]
    whole, cut = feed_of(DENY), feed_of(DENY)
    whole.send(flows)
    for start in range(0, 100, 7):
        cut.send(flows[start : start + 7])
    for feed in (whole, cut):
        feed.end()
    found = [[msgspec.to_builtins(e) for e in feed.output.events if e.kind is VIOLATED] for feed in (whole, cut)]
    assert found[0] and found[0] == found[1]
