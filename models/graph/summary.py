"""Counts over closed windows and events, for the end of a replay or backtest. Pure."""

from collections import Counter
from dataclasses import dataclass, field

from models.graph.output import Output
from schemas.drift import Activity


@dataclass(slots=True)
class Summary:
    """What a run saw and raised.

    Attributes:
        rows: rows by outcome (``on_time``, ``late``, ``skewed``, ``dead``, ``repeated``).
        findings: findings opened, by kind. events: events published, by activity.
    """

    windows: int = 0
    flows: int = 0
    edges: set[tuple[str, str, str, int, int]] = field(default_factory=set)
    tenants: set[str] = field(default_factory=set)
    rows: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    first_ms: int | None = None
    last_ms: int | None = None

    def add(self, output: Output) -> None:
        """Count one output."""
        self.rows.update(output.counts)
        for window in output.windows:
            edges = window.edges
            self.windows += 1
            self.flows += int(edges.measure("flows").sum() + edges.other_side_flows.sum())
            self.tenants.add(window.tenant)
            ports, protocols = edges.port.tolist(), edges.protocol.tolist()
            self.edges.update(
                (window.tenant, src, dst, port, protocol)
                for src, dst, port, protocol in zip(edges.src, edges.dst, ports, protocols, strict=True)
            )
            self.first_ms = window.start_ms if self.first_ms is None else min(self.first_ms, window.start_ms)
            self.last_ms = window.end_ms if self.last_ms is None else max(self.last_ms, window.end_ms)
        for event in output.events:
            self.events[event.activity.name.lower()] += 1
            if event.activity is Activity.CREATE:
                self.findings[event.kind.value] += 1
