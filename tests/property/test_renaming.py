"""Changes of names in the middle of everything: any cut into records, any re-delivery, any restart says the same.

One input, rows and controls in one order. However the rows between two controls are cut into records, the same windows
close with the same settled findings; and a machine restored after any record goes on to the byte as if it had never
stopped.
"""

import random
from typing import Any

import msgspec
import pytest

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import mark_clean, restore, take
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind
from schemas.flow import Flow
from schemas.inventory import INVENTORY
from schemas.tenant_log import LogRecord, Member, decode_record, encode_record
from tests.builders import make_flow, make_lane, record_of
from tests.property.test_law import settled, window_values
from tests.unit.models.graph.driving import WINDOW_MS, Feed

WINDOWS = 20
TENANTS = ("acme", "globex")
DETECTION = DetectionConfig(
    learning_windows=3,
    min_history=3,
    removed_after_silences=2,
    removed_min_windows=2,
    fan_out_min=3,
    fan_out_ratio=1.5,
    denied_min=3,
    denied_ratio=2.0,
    close_after_windows=3,
)
SERVICES = (
    *(f"ip:10.{a}.{b}.{c}" for a in (0, 1) for b in (0, 1) for c in (1, 2)),
    *(f"ip:52.{a}.{b}.7" for a in (216, 217) for b in (1, 200)),
    "ip:2a00:1450::1",
    "ip:224.0.0.251",
    *(f"label:{namespace}/tier={tier}" for namespace in ("shop", "blog") for tier in ("web", "db")),
    *(f"shop/job-{number}" for number in range(4)),
    "shop/web",
    "shop/db",
    "corp",
    "ext:net/52.216.0.0/16",
)
NAMES = ("shop/db", "corp", "shop/web", "new/a", "new/b", "ext:aws/s3")
RANGES = ("10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16", "10.1.1.0/24", "10.0.0.1", "52.216.0.0/15", "52.216.0.0/17")

Step = Flow | tuple[str, str, str, bytes]
"""A row, or a control: tenant, kind, name and value."""


def random_document(rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return b""
    document: dict[str, Any] = {"addresses": [], "labels": [], "names": []}
    for cidr in rng.sample(RANGES, rng.randint(0, 3)):
        what: dict[str, Any] = {"collapse": 24} if rng.random() < 0.2 and "/" in cidr else {"name": rng.choice(NAMES)}
        if rng.random() < 0.3 and not what.get("name", "").startswith("ext:"):
            what["inside"] = rng.random() < 0.5
        document["addresses"].append({"cidr": cidr, **({"cidr": cidr} | what)})
    if rng.random() < 0.5:
        document["labels"].append({"labels": {"tier": rng.choice(["web", "*"])}, "name": rng.choice(NAMES)})
    if rng.random() < 0.5:
        document["names"].append({"match": rng.choice(["shop/job-*", "corp", "shop/*"]), "name": rng.choice(NAMES)})
    return msgspec.json.encode(document)


def random_steps(seed: int) -> list[Step]:
    """Rows in order of event time, steady ones and news, with changes of names and settings between them."""
    rng = random.Random(seed)
    steady = [(rng.choice(SERVICES), rng.choice(SERVICES), rng.choice((80, 443))) for _ in range(14)]
    steps: list[Step] = []
    for index in range(WINDOWS):
        rows: list[Flow] = []
        for tenant in TENANTS:
            edges = [edge for edge in steady if rng.random() < 0.9]
            edges += [
                (rng.choice(SERVICES), rng.choice(SERVICES), rng.randint(80, 83)) for _ in range(rng.choice((0, 0, 5)))
            ]
            for src, dst, port in edges:
                for _ in range(rng.randint(1, 4)):
                    rows.append(
                        make_flow(
                            index * WINDOW_MS + rng.randrange(WINDOW_MS),
                            src=src,
                            dst=dst,
                            port=port,
                            tenant=tenant,
                            calls=rng.randint(1, 9),
                            latency_us=rng.choice((None, 100, 5_000)),
                            denied=int(rng.random() < 0.1),
                            reporter=rng.choice(("client", "server")),
                        )
                    )
        rows.sort(key=lambda flow: flow.time_ms)
        steps += rows
        for _ in range(rng.choice((0, 0, 1, 2))):
            control = (rng.choice(TENANTS), INVENTORY, rng.choice("ab"), random_document(rng))
            if rng.random() < 0.1:
                control = (rng.choice(TENANTS), "tenant-settings", "x", b'{"outside_prefix_v4": 8}')
            steps.insert(len(steps) - rng.randrange(len(rows)), control)
    return steps


def feed_steps(steps: list[Step], rng: random.Random, most: int, cap: int = 10_000) -> Feed:
    """Return a feed to which the rows were sent in records of at most ``most``; some records come twice."""
    detection = msgspec.structs.replace(DETECTION, max_edges_per_tenant=cap)
    feed = Feed(make_lane(lateness_ms=2_000, detection=detection))
    batch: list[Flow] = []

    def flush() -> None:
        if batch:
            feed.send(batch)
            batch.clear()
            if rng.random() < 0.1:
                feed.append(rng.choice(feed.log))

    for step in steps:
        if isinstance(step, Flow):
            batch.append(step)
            if len(batch) >= rng.randint(1, most):
                flush()
        else:
            flush()
            tenant, kind, name, value = step
            feed.control(value, tenant, kind=kind, name=name)
    flush()
    feed.end()
    return feed


def said(output: Output) -> object:
    """Return windows, and findings that were settled.

    Whether one is told early hangs on how records are cut, and a new name can make it void: then it is closed, and the
    next of that name is another episode. So nothing is compared by episode here.
    """
    windows = sorted((window_values(window) for window in output.windows), key=repr)
    findings = []
    for events in settled(output.events).values():
        if any("activity" not in event for event in events):
            for event in events:
                for name in ("finding_id", "event_id", "episode"):
                    event.pop(name, None)
            findings.append(events)
    return windows, sorted(findings, key=repr)


@pytest.mark.parametrize("seed", range(12))
def test_how_rows_are_cut_into_records_changes_nothing(seed: int) -> None:
    steps = random_steps(seed)
    straight = feed_steps(steps, random.Random(0), 1)
    for most in (7, 400):
        assert said(feed_steps(steps, random.Random(seed), most).output) == said(straight.output)


@pytest.mark.parametrize("seed", range(12))
def test_a_machine_restored_after_any_record_goes_on_as_if_it_had_never_stopped(seed: int) -> None:
    rng = random.Random(seed)
    log = [decode_record(encode_record(record)) for record in feed_steps(random_steps(seed), rng, 200, cap=50).log]
    straight, restored = Machine(), Machine()
    chunks: dict[str, bytes] = {}
    for offset, record in enumerate(log):
        expected, found = straight.apply(offset, record), restored.apply(offset, record)
        assert said(found) == said(expected) and found.events == expected.events and found.counts == expected.counts
        whole = dict(take(straight, everything=True))
        if rng.random() < 0.5:  # a checkpoint writes what has changed since the last one
            chunks |= {name: chunk for name, chunk in take(restored) if chunk is not None}
            mark_clean(restored)
            chunks = {name: chunk for name, chunk in chunks.items() if name in whole}
            assert chunks == whole
        if rng.random() < 0.5:
            restored = restore({name: chunk for name, chunk in whole.items() if chunk is not None})
            mark_clean(restored)
            chunks = {name: chunk for name, chunk in whole.items() if chunk is not None}


def test_the_inputs_are_worth_their_name() -> None:
    """Names changed while findings were open, windows held rows, and edges became one; and things were found."""
    kinds: set[DriftKind] = set()
    reasons: set[str] = set()
    renamed = 0
    for seed in range(12):
        feed = feed_steps(random_steps(seed), random.Random(seed), 50)
        kinds |= {event.kind for event in feed.output.events}
        reasons |= {event.close_reason for event in feed.output.events}
        renamed += any(record.controls for record in feed.log)
    assert kinds >= {DriftKind.NEW_SERVICE, DriftKind.NEW_EDGE, DriftKind.NEW_PORT, DriftKind.NEW_EXTERNAL_EGRESS}
    assert kinds >= {DriftKind.REMOVED_EDGE, DriftKind.RATE_DROP, DriftKind.FAN_OUT_BURST, DriftKind.DENIED_BURST}
    assert "renamed" in reasons and renamed == 12


# -- lanes side by side, halves of calls -------------------------------------------------------------------------------


def live_log(seed: int) -> list[LogRecord]:
    """Two live lanes of the same tenants, one a second behind; a third of the calls comes as halves with one key."""
    rng = random.Random(seed)
    detection = msgspec.structs.replace(DETECTION, max_edges_per_tenant=80)
    lanes = [
        make_lane(name=name, mode="live", lateness_ms=2_000, members=(Member(f"{name}#1", 1),), detection=detection)
        for name in ("hubble", "vpc")
    ]
    feed = Feed(lanes[0])
    offsets = [0, 0]
    batches: list[list[tuple[Flow, int]]] = [[], []]

    def flush(at: int) -> None:
        flows, keys = [flow for flow, _ in batches[at]], [key for _, key in batches[at]]
        if flows:
            now = max(flow.time_ms for flow in flows) + 100 + 1_000 * at
            record = record_of(lanes[at], 0, offsets[at], flows, as_of_ms=now, marks={"pair": keys})
            progress = msgspec.structs.replace(record.progress[0], source=f"{lanes[at].name}#1")
            feed.append(msgspec.structs.replace(record, progress=(progress,)))
            offsets[at] += len(flows)
            batches[at].clear()

    for number, step in enumerate(random_steps(seed)):
        if not isinstance(step, Flow):
            flush(0)
            flush(1)
            tenant, kind, name, value = step
            feed.control(value, tenant, kind=kind, name=name)
            continue
        kind_of_row = rng.random()
        if (
            kind_of_row < 0.3
        ):  # the client's half names whom it called, or does not; the server's comes elsewhere in time
            unknown = msgspec.structs.replace(step, dst="ext:unknown", reporter="client")
            answered = msgspec.structs.replace(step, src="ext:unknown", reporter="server")
            batches[0] += [(unknown, number), (answered, number)][:: rng.choice((1, -1))]
        else:
            batches[int(kind_of_row < 0.6)].append((step, -1))
        for at in (0, 1):
            if rng.random() < 0.05:
                flush(at)
    flush(0)
    flush(1)
    return [decode_record(encode_record(record)) for record in feed.log]


@pytest.mark.parametrize("seed", range(4))
def test_lanes_side_by_side_are_restored_in_the_middle_of_renaming(seed: int) -> None:
    straight, restored = Machine(), Machine()
    rng = random.Random(seed)
    for offset, record in enumerate(live_log(seed)):
        expected, found = straight.apply(offset, record), restored.apply(offset, record)
        assert found.events == expected.events and found.counts == expected.counts
        if rng.random() < 0.4:
            whole = {name: chunk for name, chunk in take(straight, everything=True) if chunk is not None}
            restored = restore({name: chunk for name, chunk in take(restored, everything=True) if chunk is not None})
            assert dict(take(restored, everything=True)) == whole


def test_the_live_logs_are_worth_their_name() -> None:
    seen: set[str] = set()
    for seed in range(4):
        machine, output = Machine(), Output()
        for offset, record in enumerate(live_log(seed)):
            output.extend(machine.apply(offset, record))
        seen |= {lane for event in output.events if len(event.seen_in) > 1 for lane in event.seen_in}
        seen |= {event.close_reason for event in output.events} | {name for name, n in output.counts.items() if n}
    assert seen >= {"hubble", "vpc", "renamed", "on_time"}
    assert any("pair" in name for name in seen), seen
