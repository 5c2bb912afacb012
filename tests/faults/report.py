"""What a fault run gave, as Markdown for people and JSON for machines. Pure but for writing the two files."""

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults import plan as kinds
from tests.faults.run import Outcome

VERDICT = (
    ("lost", "lost"),
    ("duplicated_by_id", "duplicated by id"),
    ("unexpected", "unexpected"),
    ("wrong_totals", "wrong totals"),
    ("missed_gaps", "missed gaps"),
    ("false_gaps", "false gaps"),
)


def facts_of(outcome: Outcome, command: str) -> dict[str, Any]:
    """Return everything that is known of a run, ready for JSON."""
    verdict = outcome.verdict
    longest: dict[str, float] = {}
    for fault in outcome.injected:
        if fault.lasted_s is not None:
            longest[fault.kind] = max(longest.get(fault.kind, 0.0), fault.lasted_s)
    return {
        "command": command,
        "machine": f"{platform.machine()}, {len(_cores())} cores, Python {platform.python_version()}",
        "is_clean": outcome.is_clean,
        "size": asdict(outcome.size),
        "seconds": outcome.seconds,
        "flows": {"acknowledged": outcome.flows, "stored": outcome.stored, "fate unknown": outcome.unknown},
        "flows_per_s": round(outcome.flows / outcome.seconds) if outcome.seconds else None,
        "wrong_edges": outcome.wrong_edges,
        "verdict": None if verdict is None else asdict(verdict),
        "faults": dict(Counter(fault.kind for fault in outcome.injected)),
        "longest_s": longest,
        "clickhouse_requests_hit": outcome.clickhouse_hits,
        "recovery": {
            "reported_s": spread([f.reported_s for f in outcome.injected if f.kind == kinds.KILL]),
            "well_s": spread([f.well_s for f in outcome.injected if f.kind == kinds.KILL]),
        },
        "detection_s": spread(outcome.detection_s),
        "longest_silence_s": round(outcome.silence_s, 1),
        "drained_s": outcome.drained_s,
        "memory_max_mib": {name: size >> 20 for name, size in sorted(outcome.memory_max.items())},
        "lag_max_messages": dict(sorted(outcome.lag_max.items())),
        "problems": outcome.problems,
        "notes": outcome.notes,
        "injected": [asdict(fault) for fault in outcome.injected],
    }


def spread(values: Sequence[float | None]) -> dict[str, float | int]:
    """Return count, median, 95th percentile and maximum."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return {"count": 0}
    return {
        "count": len(known),
        "median": round(statistics.median(known), 2),
        "p95": round(known[min(len(known) - 1, int(0.95 * len(known)))], 2),
        "max": round(known[-1], 2),
    }


def write_report(outcome: Outcome, path: Path, command: str) -> dict[str, Any]:
    """Write ``path`` (Markdown) and the same beside it as JSON; return the facts."""
    facts = facts_of(outcome, command)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(facts), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def markdown(facts: dict[str, Any]) -> str:
    """Return the report as a page."""
    verdict, size, flows = facts["verdict"] or {}, facts["size"], facts["flows"]
    counts = verdict.get("counts", {})
    said = "Nothing lost, nothing doubled, nothing invented." if facts["is_clean"] else "**Not clean: see below.**"
    lines = [
        "# Fault run",
        "",
        said,
        "",
        f"`{facts['command']}`, {facts['machine']}, Apache Kafka, chdb behind a fault-injecting HTTP front.",
        "",
        "| judged | |",
        "|---|---|",
        *(f"| {title} | {verdict.get(name, 'not judged')} |" for name, title in VERDICT),
        f"| edges whose total differs from what the brokers acknowledged | {facts['wrong_edges']} |",
        f"| raw duplicates (allowed, left by zombies and crashes) | {verdict.get('raw_duplicates', 'not judged')} |",
        "",
        "| load | |",
        "|---|---|",
        f"| seconds | {facts['seconds']} |",
        f"| flows acknowledged / stored | {flows['acknowledged']:,} / {flows['stored']:,} |",
        f"| flows a second, mean over everything, outages included | {facts['flows_per_s']:,} |",
        f"| workers, partitions, edges, tenants | {size['workers']}, {size['partitions']}, {size['edges']:,}, "
        f"{size['tenants']} and a probe for each partition |",
        *(f"| {name.replace('_', ' ')} | {count:,} |" for name, count in counts.items() if isinstance(count, int)),
        "",
        "| fault | times | longest, s |",
        "|---|---|---|",
        *(f"| {kind} | {times} | {facts['longest_s'].get(kind, '')} |" for kind, times in facts["faults"].items()),
        f"| {kinds.SKEW} | always | |",
        "",
        "| seconds | median | p95 | max | of |",
        "|---|---|---|---|---|",
        _row("from `kill -9` until each partition of the victim reported a new edge", facts["recovery"]["reported_s"]),
        _row("from `kill -9` until all partitions reported new edges within 2 s again", facts["recovery"]["well_s"]),
        _row("from sending a new edge until its event was read, faults included", facts["detection_s"]),
        "",
        f"Longest time without a new edge of a partition: {facts['longest_silence_s']} s. "
        f"Drained {facts['drained_s']} s after the load had ended.",
        f"Requests hit by ClickHouse faults: {facts['clickhouse_requests_hit']}.",
        f"Resident memory at most, MiB: {facts['memory_max_mib']}. Lag at most, messages: {facts['lag_max_messages']}.",
        "",
    ]
    for title, found in (
        ("Problems", [*facts["problems"], *verdict.get("details", [])]),
        ("Notes", [*facts["notes"], *verdict.get("notes", [])]),
    ):
        if found:
            lines += [f"## {title}", "", *(f"- {text}" for text in found), ""]
    lines += ["## What was injected", "", "| at, s | fault | about | reported, s | well, s | lasted, s | |"]
    lines += ["|---|---|---|---|---|---|---|", *map(_injected, facts["injected"]), ""]
    return "\n".join(lines)


def _row(title: str, values: dict[str, Any]) -> str:
    return f"| {title} | " + " | ".join(str(values.get(name, "")) for name in ("median", "p95", "max", "count")) + " |"


def _injected(fault: dict[str, Any]) -> str:
    names = ("at_s", "kind", "victim", "reported_s", "well_s", "lasted_s", "note")
    return "| " + " | ".join("" if fault[name] is None else str(fault[name]) for name in names) + " |"


def _cores() -> set[int]:
    return os.sched_getaffinity(0)
