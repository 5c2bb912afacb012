"""Made restarts and deployments in resampled real traffic: how many findings and alerts does each one bring?

    drift bench restarts DIR
    python -m tests.bench.restarts DIR

DIR holds recorded traces in Nezha's form (docs/detection-quality.md). Seeded. Restarts are made, so this says what
becomes of restarts like these, not how real ones look.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from deploy.injected_drifts.recordings import read_recordings
from deploy.injected_drifts.stream import FIRST_MINUTE, SOURCE, WARM_UP, log_records
from deploy.injected_drifts.traffic import MINUTE_MS, Calls, Edges, Recording, Traffic
from models.graph.machine import Machine
from schemas.detection import DetectionConfig
from schemas.drift import Activity, DriftEvent
from schemas.tenant_log import LaneConfig, Member

SEED = 7
HOURS = 72
APART_MIN = (180, 420)
"""Minutes from one start of any service to the next, least and most."""
DOWN_S = (40, 150)
"""For how long a service that restarts answers and calls nobody, least and most."""
SLOW = 8
"""How many times as long its first calls take, for two minutes."""
BUSY = 15
"""Calls a mean minute of the edges by which services are chosen."""
AFTER_MIN = 10
"""What is told within so many minutes of a start is counted to it."""
CONFIG = "config-server"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a service. ``down_ms`` 0: a rolling deployment, which makes a call of its own instead."""

    service: str
    at_ms: int
    down_ms: int


def starts_of(recording: Recording, rng: np.random.Generator) -> list[Start]:
    """Plan starts of the services with two busy edges inside at least, but of the one that most calls touch."""
    load = recording.calls_a_minute()
    busy: dict[str, float] = defaultdict(float)
    edges: dict[str, int] = defaultdict(int)
    for (src, dst, _), calls in zip(recording.edges, load.tolist(), strict=True):
        for end in {src, dst}:
            if not end.startswith("ext:"):
                busy[end] += calls
                edges[end] += calls >= BUSY
    chosen = sorted((name for name in busy if edges[name] >= 2), key=lambda name: (-busy[name], name))[1:5]
    found: list[Start] = []
    minute = WARM_UP + 30
    while minute < HOURS * 60:
        number = len(found)
        down_s = int(rng.integers(DOWN_S[0], DOWN_S[1] + 1)) if number % 2 else 0
        service = chosen[number // 2 % len(chosen)]
        found.append(Start(service, (FIRST_MINUTE + minute) * MINUTE_MS + int(rng.integers(MINUTE_MS)), down_s * 1_000))
        minute += int(rng.integers(APART_MIN[0], APART_MIN[1] + 1))
    return found


def minutes_of(recording: Recording, edges: Edges, starts: list[Start]) -> Iterator[tuple[int, Calls]]:
    """Yield the minutes of the traffic with the starts in it."""
    traffic = Traffic(recording, np.random.default_rng([SEED, 0]))
    for minute in range(FIRST_MINUTE, FIRST_MINUTE + HOURS * 60):
        calls = traffic.minute(minute)
        for start in starts:
            if abs(start.at_ms - minute * MINUTE_MS) < AFTER_MIN * MINUTE_MS:
                calls = _started(calls, edges, start, minute)
        yield minute, calls


def _started(calls: Calls, edges: Edges, start: Start, minute: int) -> Calls:
    touched = np.array([start.service in edge[:2] for edge in edges.known])[calls.edge]
    since_ms = calls.time_ms - start.at_ms
    kept = ~(touched & (since_ms >= 0) & (since_ms < start.down_ms))
    calls, touched = calls.take(kept), touched[kept]
    back_ms = start.at_ms + start.down_ms
    slow = touched & (calls.time_ms >= back_ms) & (calls.time_ms < back_ms + 2 * MINUTE_MS)
    calls = replace(calls, latency_us=np.where(slow, calls.latency_us * SLOW, calls.latency_us))
    if not start.down_ms and start.at_ms // MINUTE_MS == minute:
        own = edges.number(start.service, CONFIG, 8888)
        one = Calls(*(np.array([value]) for value in (start.at_ms, own, 0, 500, 5_000, 20_000)))
        calls = Calls.joined([calls, one])
    return calls


def told(recording: Recording, starts: list[Start], thresholds: Mapping[str, int | float]) -> list[DriftEvent]:
    """Return the findings of the stream: as they began, or became alerts."""
    edges, machine = Edges.of(recording.edges), Machine()
    detection = msgspec.structs.replace(DetectionConfig(), alerts_per_day=0, **thresholds)
    config = LaneConfig(
        "replay:restarts",
        mode="replay",
        window_ms=MINUTE_MS,
        max_wait_ms=0,
        members=(Member(SOURCE, 1),),
        detection=detection,
    )
    records = log_records(minutes_of(recording, edges, starts), edges, config)
    events = [event for offset, record in enumerate(records) for event in machine.apply(offset, record).events]
    worst: dict[str, DriftEvent] = {}
    for event in events:
        before = worst.get(event.finding_id)
        if event.activity is not Activity.CLOSE and (before is None or event.is_alert > before.is_alert):
            worst[event.finding_id] = event
    return list(worst.values())


def figures(starts: list[Start], events: list[DriftEvent]) -> list[str]:
    """Return a line for each kind of start, of the first of each service and of later ones: findings and alerts."""
    counts: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    seen: set[tuple[str, bool]] = set()
    for start in starts:
        mine = [
            e
            for e in events
            if start.at_ms - MINUTE_MS < e.window_end_ms <= start.at_ms + AFTER_MIN * MINUTE_MS
            and start.service in {e.src, e.dst, *(ref.src for ref in e.edges), *(ref.dst for ref in e.edges)}
        ]
        key = (start.service, start.down_ms > 0)
        turn = "later" if key in seen else "first"
        seen.add(key)
        what = "restart" if start.down_ms else "rolling"
        counts[what, turn].append((len(mine), sum(e.is_alert for e in mine)))
    lines = []
    for (what, turn), ones in sorted(counts.items()):
        findings, alerts = (float(np.mean([one[at] for one in ones])) for at in (0, 1))
        quiet = sum(not one[1] for one in ones)
        lines.append(
            f"  {what}, {turn}: {len(ones)} starts, {findings:.2f} findings and {alerts:.2f} alerts each, "
            f"{quiet} without an alert"
        )
    return lines


def main(arguments: list[str]) -> None:
    """Print the figures of each system, with what restarts teach and without."""
    parser = argparse.ArgumentParser(prog="restarts", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    for recording in read_recordings(parser.parse_args(arguments).folder, SEED):
        starts = starts_of(recording, np.random.default_rng([SEED, 4]))
        print(f"{recording.system}: {len(starts)} starts of {sorted({start.service for start in starts})} in {HOURS} h")
        for name, thresholds in (("as it is", {}), ("recurring_after 0", {"recurring_after": 0})):
            events = told(recording, starts, thresholds)
            print(f" {name}: {len(events)} findings, {sum(e.is_alert for e in events)} alerts in all")
            print("\n".join(figures(starts, events)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
