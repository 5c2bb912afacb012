"""Recall, delay and false alarms of injected drifts, with and without parts of the verdict. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from deploy.injected_drifts.drifts import NOTHING, SIZES
from deploy.injected_drifts.stream import Run, kind_of
from deploy.injected_drifts.traffic import MINUTE_MS
from models.drift.labelled import judge_findings
from schemas.drift import DriftEvent, DriftKind
from schemas.labelled import DetectedIncident, LabelledReport

_NEVER = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the verdict that can be left out.

    Attributes:
        kinds, detectors: findings of these kinds, or that rest on these detectors alone, do not count: as if nobody
            had raised them. thresholds: settings under which the part has no say; that takes a run of its own.
    """

    says: str
    kinds: frozenset[DriftKind] = frozenset()
    detectors: frozenset[str] = frozenset()
    thresholds: Mapping[str, int | float] = field(default_factory=dict)

    def keeps(self, event: DriftEvent) -> bool:
        """Say whether a finding is still raised."""
        told_by = {evidence.detector for evidence in event.evidence}
        return event.kind not in self.kinds and not (told_by and told_by <= self.detectors)


PARTS: dict[str, Part] = {
    "first-seen": Part("new services, edges, ports, egress", detectors=frozenset({"first-seen"})),
    "burst": Part("fan-out, refusals, surges across the border", detectors=frozenset({"burst"})),
    "silence": Part("edges that fall silent", detectors=frozenset({"silence"})),
    "rate": Part("more and fewer calls than usual", kinds=frozenset({DriftKind.RATE_SURGE, DriftKind.RATE_DROP})),
    "bytes": Part("more bytes than usual", kinds=frozenset({DriftKind.BYTES_SURGE})),
    "errors": Part("more errors than usual", kinds=frozenset({DriftKind.ERROR_INCREASE})),
    "latency": Part("slower than usual", kinds=frozenset({DriftKind.LATENCY_INCREASE})),
    "slow drift": Part("what creeps", detectors=frozenset({"page-hinkley"})),
    "recurrence": Part("what comes back at its hour", thresholds={"recurring_after": 0}),
    "score": Part(
        "the robust z-score: a minimum effect alone is enough", thresholds={"z_threshold": 0.0, "departure_doubt": 0.0}
    ),
    "rarity": Part(
        "how rare a departure is for its edge, and whether it lasts: each window by itself",
        thresholds={"departure_doubt": 0.0},
    ),
    "effect": Part(
        "the minimum effect: a high score alone is enough",
        thresholds={"min_effect_ratio": 1.0, "min_latency_shift_us": 0, "min_error_shift": 0.0},
    ),
    "sample": Part("the minimum sample of a window", thresholds={"min_calls": 1}),
    "history": Part("the minimum history of an edge", thresholds={"min_history": 1}),
    "border": Part("judging open services as a whole", thresholds={"open_after_windows": _NEVER}),
}
"""What can be left out, by name."""


@dataclass(frozen=True, slots=True)
class SizeFigures:
    """One kind in one size.

    Attributes:
        episodes: how often it was injected. alerted: of how many of them some finding was an alert.
        delays: of each episode that was told, in windows, from the one it began in to the one that told, both counted.
        findings: how many each of those made. told_by: kinds of the first, and how often.
    """

    kind: str
    size: str
    episodes: int
    alerted: int
    delays: tuple[int, ...]
    findings: tuple[int, ...]
    told_by: dict[str, int]

    @property
    def recall(self) -> float:
        """Return the share of the episodes that were told."""
        return len(self.delays) / self.episodes

    def as_dict(self) -> dict[str, Any]:
        """Return the figures to be printed; -1 where nothing was told."""
        return {
            "kind": self.kind,
            "size": self.size,
            "episodes": self.episodes,
            "recall": self.recall,
            "recall_of_alerts": self.alerted / self.episodes,
            "delay_windows_median": float(median(self.delays)) if self.delays else -1.0,
            "delay_windows_max": max(self.delays, default=-1),
            "findings_median": float(median(self.findings)) if self.findings else 0.0,
            "told_by": self.told_by,
        }


@dataclass(frozen=True, slots=True)
class SystemFigures:
    """One system: its quiet stream and its injected one.

    Attributes:
        false_alarms_per_day, alerts_per_day: findings, and those of them that are alerts, of the stream in which
            nothing was injected; quiet_days: how much of it was judged.
    """

    system: str
    quiet_days: float
    false_alarms_per_day: float
    alerts_per_day: float
    false_alarms_by_kind: dict[str, int]
    sizes: tuple[SizeFigures, ...]


@dataclass(frozen=True, slots=True)
class SystemRuns:
    """The two streams of one system."""

    system: str
    quiet: Run
    injected: Run


def figures_of(runs: SystemRuns, without: Iterable[str] = ()) -> SystemFigures:
    """Return the figures of a system, as if the named parts had raised nothing (their thresholds are the run's)."""
    parts = [PARTS[name] for name in without]
    quiet, quiet_alerts = _judged(runs.quiet, parts)
    injected, alerts = _judged(runs.injected, parts)
    known = {incident.kind for incident in injected.incidents}
    return SystemFigures(
        runs.system,
        quiet.quiet_days,
        quiet.false_alarms_per_day,
        quiet_alerts.false_alarms_per_day,
        quiet.false_alarms_by_kind,
        tuple(
            _size_figures(size.kind, size.size, injected, alerts)
            for size in SIZES
            if kind_of(size.kind, size.size) in known
        ),
    )


def together(figures: Sequence[SystemFigures]) -> list[SizeFigures]:
    """Return the figures of each kind and size over all systems."""
    grouped: dict[tuple[str, str], list[SizeFigures]] = {}
    for system in figures:
        for one in system.sizes:
            grouped.setdefault((one.kind, one.size), []).append(one)
    return [
        SizeFigures(
            kind,
            size,
            sum(one.episodes for one in ones),
            sum(one.alerted for one in ones),
            tuple(delay for one in ones for delay in one.delays),
            tuple(count for one in ones for count in one.findings),
            dict(sum((Counter(one.told_by) for one in ones), Counter()).most_common()),
        )
        for (kind, size), ones in grouped.items()
    ]


def mean_recall(sizes: Sequence[SizeFigures]) -> float:
    """Return the mean recall over all kinds and sizes, each counting alike, the control left out."""
    return fmean([one.recall for one in sizes if one.kind != NOTHING] or [0.0])


def _judged(run: Run, parts: Sequence[Part]) -> tuple[LabelledReport, LabelledReport]:
    events = [event for event in run.events if all(part.keeps(event) for part in parts)]
    alerts = [event for event in events if event.is_alert]
    found = [judge_findings(one, run.windows_ms, run.learning_ms, run.incidents, MINUTE_MS) for one in (events, alerts)]
    return found[0], found[1]


def _size_figures(kind: str, size: str, report: LabelledReport, alerts: LabelledReport) -> SizeFigures:
    def of(one: LabelledReport) -> list[DetectedIncident]:
        return [i for i in one.incidents if i.kind == kind_of(kind, size)]

    episodes, told = of(report), [one for one in of(report) if one.delay_windows > 0]
    return SizeFigures(
        kind,
        size,
        len(episodes),
        sum(one.delay_windows > 0 for one in of(alerts)),
        tuple(one.delay_windows for one in told),
        tuple(one.findings for one in told),
        dict(Counter(one.finding_kind for one in told).most_common()),
    )
