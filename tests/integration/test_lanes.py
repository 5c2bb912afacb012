"""Two producers of different formats report the same traffic of one tenant: one edge, two sources, one finding."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from models.graph.lane import LaneState
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.inventory import INVENTORY
from schemas.settings import FlowTopic, LaneSettings, Settings
from streams.controls import write_controls
from tests.builders_clickhouse import ClickHouse
from tests.e2e.pipeline import Running, following, running, send_all

pytestmark = pytest.mark.kafka
MakeSettings = Callable[..., Settings]
TENANT = "acme"
ADDRESSES = {"web": "10.0.1.1", "cart": "10.0.1.2", "pay": "10.0.1.3"}
# Before a finding is closed, 45 windows of a second, the flow logs must tell what Hubble told.
DETECTION = {"learning_windows": 4, "min_history": 1_000, "close_after_windows": 45}


def hubble(time_s: float, src: str, dst: str) -> bytes:
    """Return a flow as Cilium's exporter writes it: it names the workloads."""
    moment = datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")

    def end(name: str) -> dict[str, object]:
        pod = f"{name}-7848d6c4d5-th9v2"
        return {"namespace": "shop", "pod_name": pod, "workloads": [{"name": name, "kind": "Deployment"}]}

    flow = {
        "time": moment,
        "verdict": "FORWARDED",
        "IP": {"source": ADDRESSES[src], "destination": ADDRESSES[dst], "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 44_916, "destination_port": 80, "flags": {"SYN": True}}},
        "source": end(src),
        "destination": end(dst),
        "Type": "L3_L4",
        "node_name": "kind/worker",
        "traffic_direction": "EGRESS",
        "is_reply": False,
    }
    return json.dumps({"flow": flow, "node_name": "kind/worker", "time": moment}).encode()


def vpc(time_s: float, src: str, dst: str) -> bytes:
    """Return a line of AWS' flow logs: it knows addresses alone."""
    end_s = int(time_s)
    ends = f"{ADDRESSES[src]} {ADDRESSES[dst]} 44916 80 6"
    return f"2 123456789010 eni-1235b8ca123456789 {ends} 20 4249 {end_s - 1} {end_s} ACCEPT OK".encode()


def lanes_of(worker: Running) -> dict[str, LaneState]:
    """Return the tenant's lanes: all are in one partition."""
    assert worker.worker.graph is not None
    for partition in worker.worker.graph.partitions.values():
        lanes = partition.machine.lanes
        if any(lane.registry.edge_number for lane in lanes.values()):
            return lanes
    return {}


def pairs(worker: Running, lane: str, *, known: bool = False) -> set[tuple[str, str]]:
    """Return caller and callee of the edges of a lane; ``known``: of those whose window has closed."""
    if (state := lanes_of(worker).get(lane)) is None:
        return set()
    is_known = state.registry.edge.array["known"]
    return {edge[1:3] for edge, number in state.registry.edge_number.items() if is_known[number] or not known}


async def test_two_formats_are_two_sources_of_one_edge(
    kafka_bootstrap: str, settings_for: MakeSettings, unique_name: str, clickhouse: ClickHouse
) -> None:
    lanes = ("hubble", "vpc")
    quick = {"window_ms": 1_000, "lateness_ms": 3_000, "idle_ms": 500, "detection": DETECTION}
    topics = {"hubble": f"{unique_name}-hubble", "vpc": f"{unique_name}-vpc"}
    formats = {"hubble": "hubble", "vpc": "aws-vpc"}
    settings = settings_for(
        kafka_bootstrap,
        partitions=2,
        clickhouse=clickhouse.settings,
        lanes=tuple(LaneSettings(name=lane, **quick) for lane in lanes),
        flows=tuple(
            FlowTopic(topic=topics[lane], format=formats[lane], lane=lane, tenant_from=f"fixed:{TENANT}")
            for lane in lanes
        ),
    )
    async with following(settings) as drift:

        def told(kind: DriftKind) -> list[DriftEvent]:
            return [event for event in drift.results.events if event.kind is kind]

        rules = [{"cidr": f"{address}/32", "name": f"shop/{name}"} for name, address in ADDRESSES.items()]
        await write_controls(settings, TENANT, INVENTORY, {"main": json.dumps({"addresses": rules}).encode()})
        start_s = time.time() - 40  # what both lanes learn
        for lane, record in (("hubble", hubble), ("vpc", vpc)):
            await send_all(settings, topics[lane], [(0, record(start_s + n, "web", "cart")) for n in range(21)])
        async with running(settings) as worker:
            await worker.until(
                lambda: [lane.has_learned_of(TENANT) for lane in lanes_of(worker).values()] == [True, True],
                "both lanes have learned",
            )
            assert (
                pairs(worker, "hubble", known=True) == pairs(worker, "vpc", known=True) == {("shop/web", "shop/cart")}
            )
            assert drift.results.events == []
            await send_all(settings, topics["hubble"], [(0, hubble(time.time(), "pay", "cart"))])
            await worker.until(lambda: told(DriftKind.NEW_SERVICE), "Hubble's news is told")
            await send_all(settings, topics["vpc"], [(0, vpc(time.time(), "pay", "cart"))])
            await worker.until(
                lambda: ("shop/pay", "shop/cart") in pairs(worker, "vpc", known=True), "the flow logs have it too"
            )
            await worker.until(
                lambda: any(event.activity is Activity.CLOSE for event in told(DriftKind.NEW_SERVICE)), "it is closed"
            )
            assert worker.total("drift_dead_letters_total") == 0
            assert worker.total("drift_rows_folded_total") == 44
    assert {event.lane for event in drift.results.events} == {"hubble"}
    assert {(event.kind, event.src, event.finding_id) for event in drift.results.events} == {
        (DriftKind.NEW_SERVICE, "shop/pay", drift.results.events[0].finding_id)
    }
    first, last = drift.results.events[0], drift.results.events[-1]
    assert (first.activity, first.seen_in) == (Activity.CREATE, ("hubble",))
    assert last.seen_in == ("hubble", "vpc") and "It is also seen in lane vpc." in last.message
