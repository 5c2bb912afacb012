"""Known incidents from a file, and what a backtest shows of them.

The file is JSON (a list, or one object a line) or CSV with a header; by ``.csv`` it is told apart. Fields: ``name``,
``start_ms``, ``end_ms`` (Unix epoch in milliseconds, the end exclusive), and, where known, ``services``, ``edges``
(caller and callee) and ``kind``. In CSV services are joined by ``;`` and edges by ``;`` as ``caller->callee``.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from models.drift.labelled import judge_findings
from models.graph.output import Output
from schemas.drift import DriftEvent
from schemas.errors import ConfigurationError
from schemas.labelled import LabelledIncident, LabelledReport

_decoder = msgspec.json.Decoder(LabelledIncident)


def read_incidents(file: Path) -> list[LabelledIncident]:
    """Read known incidents.

    Raises:
        ConfigurationError: the file cannot be read, or says no such thing.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {file.name}: {str(error).splitlines()[0]}") from error
    try:
        found = _from_csv(text) if file.suffix.lower() == ".csv" else _from_json(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigurationError(f"{file.name} holds no incidents: {str(error).splitlines()[0]}") from error
    for one in found:
        if one.end_ms <= one.start_ms:
            raise ConfigurationError(f"{file.name}: incident {one.name!r} ends before it begins")
    if not found:
        raise ConfigurationError(f"{file.name} holds no incidents")
    return found


def _from_json(text: str) -> list[LabelledIncident]:
    if text.lstrip().startswith("["):
        return msgspec.json.decode(text, type=list[LabelledIncident])
    return [_decoder.decode(line) for line in text.splitlines() if line.strip()]


def _from_csv(text: str) -> list[LabelledIncident]:
    return [_of_row(row) for row in csv.DictReader(io.StringIO(text))]


def _of_row(row: dict[str, str]) -> LabelledIncident:
    def parts(name: str) -> list[str]:
        return [part.strip() for part in (row.get(name) or "").split(";") if part.strip()]

    values: dict[str, Any] = {name: row[name] for name in ("name", "start_ms", "end_ms") if row.get(name)}
    values |= {"services": parts("services"), "kind": row.get("kind") or ""}
    values["edges"] = [[end.strip() for end in edge.split("->")] for edge in parts("edges")]
    return msgspec.convert(values, LabelledIncident, strict=False)


@dataclass(slots=True)
class Shown:
    """What a run brought about, as far as incidents are held against it."""

    events: list[DriftEvent] = field(default_factory=list)
    windows_ms: list[int] = field(default_factory=list)
    learning_ms: list[int] = field(default_factory=list)

    def add(self, output: Output) -> None:
        """Take in one output."""
        self.events += output.events
        self.windows_ms += [window.start_ms for window in output.windows]
        self.learning_ms += [window.start_ms for window in output.windows if window.is_learning]

    def judge(self, incidents: list[LabelledIncident], window_ms: int) -> LabelledReport:
        """Hold findings against what is known."""
        return judge_findings(self.events, self.windows_ms, self.learning_ms, incidents, window_ms)


def incident_lines(report: LabelledReport) -> Iterator[str]:
    """Say for people how well findings matched."""
    yield f"{'incident':28} {'kind':18} {'delay, windows':>15} {'findings':>9}  first"
    for one in report.incidents:
        if not one.had_traffic:
            delay, first = "-", "no traffic, or only learning"
        else:
            delay, first = (f"{one.delay_windows}", one.finding_kind) if one.delay_windows > 0 else ("-", "not found")
        yield f"{one.name:28.28} {one.kind:18.18} {delay:>15} {one.findings:>9}  {first}"
    of_kind = ", ".join(f"{name or 'unnamed'} {share:.2f}" for name, share in report.recall_by_kind.items())
    yield f"episode recall {report.recall:.2f} ({of_kind or 'no incident had traffic'})"
    if report.delay_windows_max > 0:
        yield f"detection delay {report.delay_windows_median:g} windows (median), {report.delay_windows_max} at most"
    rate = f"{report.false_alarms_per_day:.1f} a day" if report.quiet_windows else "no quiet time to count a rate in"
    yield f"false alarms {report.false_alarms} in {report.quiet_windows} quiet windows: {rate}"
