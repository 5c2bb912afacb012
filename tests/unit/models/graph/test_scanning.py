"""A scan is one finding that names it, and what it is made of is no alert; however the log is cut."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import mark_clean, restore, take
from schemas.drift import PART_OF_SCAN, Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import DETECTION, WINDOW_MS, Feed, usual

WEB, CART, PAY = "shop/web", "shop/cart", "shop/pay"
AT = 12
END = 15


def ports_of_one(count: int, src: str = WEB, at: int = AT) -> list[Flow]:
    return [make_flow(at * WINDOW_MS + n, src=src, dst=CART, port=9_000 + n) for n in range(count)]


def hosts(count: int, src: str = WEB, at: int = AT, dst: str = "shop/host") -> list[Flow]:
    return [make_flow(at * WINDOW_MS + n, src=src, dst=f"{dst}-{n}") for n in range(count)]


def background() -> list[Flow]:
    return usual(range(END), src=WEB, dst=CART) + usual(range(END), src=PAY, dst=CART)


def feed_of(extra: list[Flow], cuts: list[int] | None = None, logic: int | None = None, **detection: object) -> Feed:
    config = msgspec.structs.replace(DETECTION, **{"alerts_per_day": 100, **detection})
    feed = Feed(make_lane(lateness_ms=0, detection=config))
    feed.logic = feed.logic if logic is None else logic
    flows = sorted(background() + extra, key=lambda flow: flow.time_ms)
    for a, b in pairwise([0, *(cuts or []), len(flows)]):
        feed.send(flows[a:b])
    feed.end()
    return feed


def settled(output: Output, kind: DriftKind) -> list[DriftEvent]:
    """Return how findings of a kind stood once their window had closed."""
    return [e for e in output.events if e.kind is kind and not e.is_early and e.activity is not Activity.CLOSE]


def facts_of(event: DriftEvent) -> dict[str, float]:
    return {item.signal: item.observed for item in event.evidence}


def test_a_scan_of_ports_is_one_alert_that_names_it() -> None:
    output = feed_of(ports_of_one(100)).output
    (scan,) = settled(output, DriftKind.FAN_OUT_BURST)
    assert (scan.src, scan.dst, scan.is_alert) == (WEB, "", True)
    assert facts_of(scan) == {"new_targets": 100, "scanned_hosts": 1, "scanned_ports": 100}
    assert scan.edges_total == 100 and {ref.dst for ref in scan.edges} == {CART}
    assert len({ref.port for ref in scan.edges}) == len(scan.edges) == 50
    assert [event for event in output.events if event.is_alert] == [scan]


def test_a_scan_of_hosts_is_one_alert_that_names_it() -> None:
    output = feed_of(hosts(100)).output
    (scan,) = settled(output, DriftKind.FAN_OUT_BURST)
    assert facts_of(scan) == {"fan_out": 101, "new_targets": 100, "scanned_hosts": 100, "scanned_ports": 1}
    assert [event for event in output.events if event.is_alert and not event.is_early] == [scan]


def test_a_scan_by_somebody_new_is_one_alert_too() -> None:
    output = feed_of(hosts(100, src="shop/stranger")).output
    (scan,) = settled(output, DriftKind.FAN_OUT_BURST)
    assert scan.src == "shop/stranger" and facts_of(scan)["scanned_hosts"] == 100
    assert [event for event in output.events if event.is_alert] == [scan]
    itself = [e for e in settled(output, DriftKind.NEW_SERVICE) if e.src == "shop/stranger"]
    assert [PART_OF_SCAN in facts_of(event) for event in itself] == [False], "it is news, not a piece of its own scan"


def test_what_it_says_is_true() -> None:
    output = feed_of(ports_of_one(100)).output
    (scan,) = settled(output, DriftKind.FAN_OUT_BURST)
    assert scan.title == "Fan-out burst from shop/web"
    for said in (
        "number of hosts and ports called for the first time in a window was 100 targets, expected 0 targets",
        "number of hosts among them was 1 host, expected 0 hosts",
        "number of ports among them was 100 ports, expected 0 ports",
        "and 95 more edges.",
    ):
        assert said in scan.message
    pieces = settled(output, DriftKind.NEW_PORT)
    assert len(pieces) == 100, "each is told, and each says so"
    for piece in pieces:
        assert facts_of(piece)[PART_OF_SCAN] == 100 and piece.risk_score <= 30 and not piece.is_alert
        assert "Part of a scan, so no alert of its own: shop/web called 100 targets for the first time" in piece.message


@pytest.mark.parametrize(("count", "is_scan"), [(14, False), (15, True)])
def test_it_takes_as_many_targets_as_a_burst_takes_peers(count: int, is_scan: bool) -> None:
    output = feed_of(ports_of_one(count), fan_out_min=15).output
    assert bool(settled(output, DriftKind.FAN_OUT_BURST)) == is_scan
    assert all((PART_OF_SCAN in facts_of(event)) == is_scan for event in settled(output, DriftKind.NEW_PORT))


def test_what_others_newly_do_in_that_window_stays_an_alert() -> None:
    output = feed_of([*ports_of_one(100), make_flow(AT * WINDOW_MS, src=WEB, dst=PAY), *hosts(1, PAY)]).output
    (edge,) = settled(output, DriftKind.NEW_EDGE)
    assert PART_OF_SCAN in facts_of(edge), "by the scanner"
    output = feed_of([*ports_of_one(100), make_flow(AT * WINDOW_MS, src=PAY, dst=WEB)]).output
    (edge,) = settled(output, DriftKind.NEW_EDGE)
    assert edge.is_alert and PART_OF_SCAN not in facts_of(edge), "by somebody else"


def test_a_new_service_that_calls_known_ones_does_not_scan() -> None:
    many = [make_flow(i * WINDOW_MS + n, src=WEB, dst=f"shop/{n}") for i in range(6) for n in range(40)]
    output = feed_of(many + [make_flow(AT * WINDOW_MS + n, src="shop/new", dst=f"shop/{n}") for n in range(40)]).output
    assert not settled(output, DriftKind.FAN_OUT_BURST)


def test_no_edge_is_lost() -> None:
    (window,) = [w for w in feed_of(ports_of_one(100)).output.windows if w.start_ms == AT * WINDOW_MS]
    assert len(window.edges.src) == 102


@pytest.mark.parametrize("logic", [1, 2])
def test_earlier_versions_name_no_scan_of_ports(logic: int) -> None:
    output = feed_of(ports_of_one(100), logic=logic).output
    assert not settled(output, DriftKind.FAN_OUT_BURST)
    assert all(event.is_alert for event in settled(output, DriftKind.NEW_PORT))


@pytest.mark.parametrize("scan", [ports_of_one(60), hosts(60), hosts(60, src="shop/stranger")])
def test_records_cut_anew_and_restores_say_the_same(scan: list[Flow]) -> None:
    once = feed_of(scan)
    rng = np.random.default_rng(3)
    total = len(background()) + len(scan)
    again = feed_of(scan, sorted(rng.choice(total, 40, replace=False).tolist()))

    def said(output: Output) -> list[tuple[object, ...]]:
        told = [event for event in output.events if not event.is_early]
        return sorted((e.finding_id, e.kind, e.risk_score, e.is_alert, e.evidence) for e in told)

    assert said(again.output) == said(once.output)
    machine, output = Machine(), Output()
    chunks: dict[str, bytes] = {}
    for offset, record in enumerate(again.log):
        output.extend(machine.apply(offset, record))
        chunks |= {name: chunk for name, chunk in take(machine) if chunk is not None}
        mark_clean(machine)
        machine = restore(chunks)
    assert [msgspec.to_builtins(e) for e in output.events] == [msgspec.to_builtins(e) for e in again.output.events]
