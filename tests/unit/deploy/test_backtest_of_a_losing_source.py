"""From files of producers' own records to findings: what is missing is told, unless the source was losing data.

The records are those of schemas/examples/sources with other names, times, nodes and factors.
"""

import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.graph.machine import Machine
from models.graph.output import Output
from schemas.drift import TELEMETRY_KINDS, Activity, DriftEvent, DriftKind
from streams.replay import ReplayLane, Tally, local_records

EXAMPLES = Path(__file__).parents[3] / "schemas/examples/sources"
START_MS = 1_762_000_020_000
WINDOW_MS, WINDOWS, GONE_AT, CALLS = 60_000, 60, 30, 20
NODES = ("worker-1", "worker-2", "worker-3")
SERVER_OF = {"worker-1": "cart", "worker-2": "currency", "worker-3": "payment"}
Record = dict[str, Any]


def example(format_name: str, *keys: str) -> Record:
    """Return the first shipped record of a format that has all these words."""
    for line in (EXAMPLES / f"{format_name}.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if all(key in line for key in keys):
            record: Record = json.loads(case["value"])
            return record
    raise AssertionError(f"no example of {format_name} with {keys}")


def instant(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def hubble(time_ms: int, node: str, server: str, **_: object) -> Record:
    record = json.loads(json.dumps(_HANDSHAKE))
    record["node_name"], record["time"] = node, instant(time_ms)
    record["flow"]["time"] = instant(time_ms)
    record["flow"]["destination"].update(pod_name=f"{server}-7848d6c4d5-th9v2", workloads=[{"name": server}])
    return record  # type: ignore[no-any-return]


def netobserv(time_ms: int, node: str, server: str, sampling: int = 1, **_: object) -> Record:
    record = json.loads(json.dumps(_FLOW_LOG))
    record.update(TimeFlowStartMs=time_ms, TimeFlowEndMs=time_ms, Sampling=sampling, AgentIP=node, Flags=["SYN"])
    record.update(SrcK8S_HostName=node, DstK8S_OwnerName=server, DstK8S_Name=f"{server}-7848d6c4d5-th9v2")
    return record  # type: ignore[no-any-return]


_HANDSHAKE = example("hubble", "a handshake, seen at the client")
_FLOW_LOG = example("netobserv", "AgentIP", "Sampling")


def records(
    make: Callable[..., Record],
    keeps: Callable[[int, str], float] = lambda window, node: 1.0,
    sampling: Callable[[int], int] = lambda window: 1,
    lost_from: int | None = None,
    late_from: int | None = None,
) -> Iterator[Record]:
    """Frontend calls one service from each node; ``keeps``: share of a node's records that there are."""
    draw = random.Random(7)
    held: list[Record] = []
    for window in range(WINDOWS):
        start_ms = START_MS + window * WINDOW_MS
        found = []
        for node in NODES:
            for call in range(round(CALLS * keeps(window, node))):
                at = start_ms + call * (WINDOW_MS // CALLS) + draw.randrange(WINDOW_MS // CALLS)
                found.append((at, make(at, node, SERVER_OF[node], sampling=sampling(window))))
        found.sort(key=lambda entry: entry[0])
        if late_from is not None and window >= late_from:
            mine = [record for at, record in found if record["node_name"] == "worker-3"]
            found = [(at, record) for at, record in found if record["node_name"] != "worker-3"]
            held += mine
            yield from held[: -20 * CALLS]
            del held[: -20 * CALLS]
        yield from (record for _, record in found)
        if lost_from is not None and window >= lost_from and window % 3 == 0:
            lost = {"source": "PERF_EVENT_RING_BUFFER", "num_events_lost": "12"}
            yield {"lost_events": lost, "node_name": "worker-3", "time": instant(start_ms + 1_000)}


def findings(
    folder: Path, format_name: str, made: Iterator[Record], flows_per_chunk: int = 4_000
) -> tuple[Output, Tally]:
    """What `drift backtest` makes of a file of these records."""
    path = folder / "flows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in made), encoding="utf-8")
    lane = ReplayLane("replay:test", WINDOW_MS, 30_000, {}, "acme", 1)
    found, tally, machine = Output(), Tally(), Machine()
    log = local_records(path, format_name, lane, as_of_ms=START_MS * 2, flows_per_chunk=flows_per_chunk, tally=tally)
    for offset, record in enumerate(log):
        found.extend(machine.apply(offset, record))
    assert not tally.dead
    return found, tally


def missing(output: Output) -> set[tuple[DriftKind, str]]:
    kinds = {DriftKind.REMOVED_EDGE, DriftKind.RATE_DROP}
    return {(e.kind, e.dst.rpartition("/")[2]) for e in output.events if e.kind in kinds}


def about_source(output: Output) -> list[DriftEvent]:
    return [e for e in output.events if e.kind in TELEMETRY_KINDS and e.activity is Activity.CREATE]


def without_payment(window: int, node: str) -> float:
    return 0.0 if node == "worker-3" and window >= GONE_AT else 1.0


BOTH = {(DriftKind.RATE_DROP, "payment"), (DriftKind.REMOVED_EDGE, "payment")}


def with_other_traffic_of_the_node(made: Iterator[Record], make: Callable[..., Record]) -> Iterator[Record]:
    """The node goes on reporting something else, so that it is the edge that is gone."""
    for number, record in enumerate(made):
        yield record
        at = record.get("time") or record["TimeFlowStartMs"]
        if number % 10 == 0 and "lost_events" not in record:
            time_ms = at if isinstance(at, int) else int(datetime.fromisoformat(at).timestamp() * 1000)
            yield make(time_ms, "worker-3", "mail")


def test_hubble_an_edge_that_vanishes_is_told(tmp_path: Path) -> None:
    output, _ = findings(tmp_path, "hubble", with_other_traffic_of_the_node(records(hubble, without_payment), hubble))
    assert missing(output) == BOTH
    assert about_source(output) == [] and not any(window.incomplete for window in output.windows)


def test_hubble_not_while_it_loses_events_and_the_event_says_so(tmp_path: Path) -> None:
    made = with_other_traffic_of_the_node(records(hubble, without_payment, lost_from=GONE_AT), hubble)
    output, tally = findings(tmp_path, "hubble", made)
    assert tally.losses["lost_events:PERF_EVENT_RING_BUFFER"] == 10
    assert missing(output) == set()
    (event,) = about_source(output)
    assert (event.kind, event.src, event.window_start_ms) == (
        DriftKind.TELEMETRY_LOSS,
        "host:worker-3",
        START_MS + GONE_AT * WINDOW_MS,
    )
    assert event.evidence[0].observed == 12 and event.evidence[0].detector == "lost_events:PERF_EVENT_RING_BUFFER"
    losing = [window.start_ms for window in output.windows if window.incomplete == ("losing",)]
    assert losing == [START_MS + window * WINDOW_MS for window in range(GONE_AT, WINDOWS)]


def test_hubble_nor_while_the_node_that_saw_it_is_silent(tmp_path: Path) -> None:
    output, _ = findings(tmp_path, "hubble", records(hubble, without_payment))
    assert missing(output) == set()
    (event,) = about_source(output)
    assert (event.kind, event.src) == (DriftKind.SILENT_HOST, "host:worker-3")
    assert event.window_start_ms == START_MS + (GONE_AT + 3) * WINDOW_MS


def thinned(window: int, node: str) -> float:
    return 1.0 if window < GONE_AT else 0.2 if node != "worker-3" else 0.0 if window % 4 else 0.05


def test_netobserv_rates_under_another_sampling_are_learned_anew(tmp_path: Path) -> None:
    def factor(window: int) -> int:
        return 1 if window < GONE_AT else 50

    output, _ = findings(tmp_path, "netobserv", records(netobserv, thinned, factor))
    assert missing(output) == set()
    assert {event.kind for event in about_source(output)} == {DriftKind.SAMPLING_CHANGE}
    observed = about_source(output)[0].evidence[0]
    assert (observed.signal, observed.observed, observed.expected) == ("sampling_factor", 50, 1)


def test_netobserv_the_same_records_without_another_factor_are_drops(tmp_path: Path) -> None:
    output, _ = findings(tmp_path, "netobserv", records(netobserv, thinned))
    assert {dst for _, dst in missing(output)} >= {"payment"}


def test_hubble_records_of_a_node_that_come_twenty_minutes_late_are_not_gone(tmp_path: Path) -> None:
    """At first it is silent, then its records come when their windows have closed: as they come, not in one go."""
    output, _ = findings(tmp_path, "hubble", records(hubble, late_from=GONE_AT), flows_per_chunk=60)
    assert missing(output) == set()
    assert [event.kind for event in about_source(output)] == [DriftKind.SILENT_HOST, DriftKind.DELIVERY_LAG]
    late = next(event for event in about_source(output) if event.kind is DriftKind.DELIVERY_LAG)
    assert late.src == "lane:replay:test" and late.evidence[0].observed > 0.2


@pytest.mark.parametrize("format_name", ["hubble", "netobserv"])
def test_a_sound_source_says_nothing_of_itself(tmp_path: Path, format_name: str) -> None:
    output, _ = findings(tmp_path, format_name, records(hubble if format_name == "hubble" else netobserv))
    assert about_source(output) == [] and missing(output) == set()
