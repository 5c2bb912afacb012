"""A prediction as people and pull requests read it: a table, Markdown, SARIF 2.1.0."""

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from schemas.prediction import PredictedChange, PredictionReport

_RULES = {
    "adds": "A call that was never seen",
    "breaks": "A policy would refuse a call that is made today",
    "shadows": "A policy of the change would refuse a call that the change declares",
    "violates": "A rule forbids this call",
}
_LEVELS = ((60, "error"), (30, "warning"), (0, "note"))
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def as_text(report: PredictionReport) -> Iterator[str]:
    """Yield the lines of a terminal."""
    yield f"risk {report.risk} of 100, {len(report.changes)} changes to the service graph"
    for change in report.changes:
        yield f"{change.risk:>3}  {change.effect:<8}  {change.reason}  {_where(change)}"
    if report.drift_events:
        yield "findings once deployed: " + ", ".join(f"{count} {kind}" for kind, count in report.drift_events.items())
    yield from (f"note: {note}" for note in report.notes)


def as_markdown(report: PredictionReport) -> Iterator[str]:
    """Yield the lines of a comment on a pull request."""
    yield f"### Service graph: risk {report.risk} of 100"
    yield ""
    if not report.changes:
        yield "The change adds no call, breaks none and violates no rule."
    else:
        yield "| risk | effect | what | where |"
        yield "|---:|---|---|---|"
        for change in report.changes:
            yield f"| {change.risk} | {change.effect} | {_cell(change.reason)} | {_cell(_where(change))} |"
    if report.drift_events:
        yield ""
        kinds = ", ".join(f"{count} `{kind}`" for kind, count in report.drift_events.items())
        yield f"Findings it would raise once deployed: {kinds}."
    for note in report.notes:
        yield ""
        yield f"> {_cell(note)}"


def as_sarif(report: PredictionReport, version: str) -> str:
    """Return SARIF 2.1.0 (OASIS): one result a change, for code scanning of pull requests."""
    rules = [{"id": name, "shortDescription": {"text": text}} for name, text in _RULES.items()]
    driver = {"name": "SecureGuard Drift", "version": version, "rules": rules}
    document = {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": [_result(change) for change in report.changes]}],
    }
    return json.dumps(document, indent=2)


def _result(change: PredictedChange) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": PurePath(change.location.file).as_posix()}}
    if change.location.line:
        place["region"] = {"startLine": change.location.line}
    return {
        "ruleId": change.effect,
        "level": next(level for least, level in _LEVELS if change.risk >= least),
        "message": {"text": change.reason},
        "locations": [{"physicalLocation": place}],
        # Lines move between commits; the edge does not.
        "partialFingerprints": {"edge/v1": f"{change.effect}|{change.src}|{change.dst}|{change.port}"},
        "properties": {"risk": change.risk, "driftKinds": [kind.value for kind in change.drift_kinds]},
    }


def _where(change: PredictedChange) -> str:
    return f"{change.location.file}:{change.location.line}" if change.location.line else change.location.file


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
