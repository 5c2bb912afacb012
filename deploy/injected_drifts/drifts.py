"""Drifts of every kind, each of a stated size: which edges they hit and what they do to a minute's calls. Pure, seeded.

What hits an edge that calls already (slow-down, errors, drop, removal, more calls) takes one with at least
``LEAST_CALLS`` calls in a mean minute: of fewer nobody could tell chance from drift within minutes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import permutations

import numpy as np

from deploy.injected_drifts.traffic import MINUTE_MS, UNUSUAL_PORT, Calls, Edges, Mask, Recording
from schemas.errors import ConfigurationError
from schemas.ids import is_external

LEAST_CALLS = 15.0
LASTS = 5
"""Minutes that a change of an edge's calls lasts."""
REMOVED_FOR = 25
"""Minutes without a call after which a removed edge comes back, so that the stream can go on."""
SENT_IN = 10
"""Calls in which an exfiltration sends its bytes."""
NOTHING = "nothing"
"""Kind of the control: a place and a time like those of the others, where nothing was changed."""

Change = Callable[[Calls, np.random.Generator], Calls]


@dataclass(frozen=True, slots=True)
class Drift:
    """One injected drift.

    Attributes:
        size: how large it is, as it is reported.
        edges: numbers of the edges it shows on. start_ms, end_ms: when, the end exclusive.
        added: calls that come on top. change: what is done to the calls of ``edges`` within its time, if anything.
    """

    kind: str
    size: str
    edges: tuple[int, ...]
    start_ms: int
    end_ms: int
    added: Calls = field(default_factory=Calls.none)
    change: Change | None = None

    def apply(self, calls: Calls, minute: int, rng: np.random.Generator) -> Calls:
        """Return a minute's calls with the drift in them. ``minute``: since the epoch."""
        if self.change is not None:
            hit: Mask = np.isin(calls.edge, self.edges)
            hit &= (calls.time_ms >= self.start_ms) & (calls.time_ms < self.end_ms)
            if hit.any():
                calls = Calls.joined([calls.take(~hit), self.change(calls.take(hit), rng)])
        begin_ms = minute * MINUTE_MS
        now = (self.added.time_ms >= begin_ms) & (self.added.time_ms < begin_ms + MINUTE_MS)
        return Calls.joined([calls, self.added.take(now)]) if now.any() else calls


@dataclass(frozen=True, slots=True)
class Size:
    """A kind of drift of one size: ``lasts`` minutes, made by ``make``."""

    kind: str
    size: str
    lasts: int
    make: "Callable[[Maker, Size, int], Drift]"


@dataclass(slots=True)
class Maker:
    """Makes drifts of one system's traffic, of every new edge, port and scan target a fresh one."""

    recording: Recording
    edges: Edges
    rng: np.random.Generator
    _pairs: list[tuple[str, str]] = field(init=False)
    _made: int = 0

    def __post_init__(self) -> None:
        called = {(src, dst) for src, dst, _ in self.recording.edges}
        free = sorted(set(permutations(self.services(), 2)) - called)
        self._pairs = [free[n] for n in self.rng.permutation(len(free)).tolist()]

    def services(self) -> list[str]:
        """Return the system's own services."""
        return sorted({end for edge in self.recording.edges for end in edge[:2] if not is_external(end)})

    def busy(self, fits: Callable[[str, str], bool] = lambda src, dst: True) -> int:
        """Return a random edge of at least ``LEAST_CALLS`` calls a minute whose ends fit."""
        load = self.recording.calls_a_minute()
        fit = [
            number
            for number, (src, dst, _) in enumerate(self.recording.edges)
            if load[number] >= LEAST_CALLS and fits(src, dst)
        ]
        if not fit:
            raise ConfigurationError(f"{self.recording.system}: no edge has {LEAST_CALLS:g} calls a minute")
        return fit[int(self.rng.integers(len(fit)))]

    def pair(self) -> tuple[str, str]:
        """Return two services of which the first never called the second."""
        if not self._pairs:
            raise ConfigurationError(f"{self.recording.system}: too few pairs of services for so many rounds")
        return self._pairs.pop()

    def fresh(self) -> int:
        """Return a number that was not given out before, from 1."""
        self._made += 1
        return self._made

    def calls(self, edge: Iterable[int], start_ms: int, end_ms: int, **columns: int) -> Calls:
        """Return one call of each of ``edge`` (repeated for more), at random times; latency and bytes as usual."""
        numbers = np.fromiter(edge, dtype=np.int64)
        usual = self.recording.calls.take(self.rng.integers(0, len(self.recording.calls), len(numbers)))
        full = {name: np.full(len(numbers), value, dtype=np.int64) for name, value in columns.items()}
        return replace(usual, time_ms=self.rng.integers(start_ms, end_ms, len(numbers)), edge=numbers, **full)


def _inside(src: str, dst: str) -> bool:
    return not is_external(src) and not is_external(dst)


def _to_outside(src: str, dst: str) -> bool:
    return is_external(dst)


def _span(maker: Maker, size: Size, minute: int) -> tuple[int, int]:
    """Return when a drift that begins in ``minute`` acts: one of a single minute ends with it at the latest."""
    start_ms = minute * MINUTE_MS + int(maker.rng.integers(0, 30_000 if size.lasts == 1 else MINUTE_MS))
    return start_ms, (minute + 1) * MINUTE_MS if size.lasts == 1 else start_ms + size.lasts * MINUTE_MS


def _added(maker: Maker, size: Size, minute: int, edges: list[int], repeat: int = 1, **columns: int) -> Drift:
    start_ms, end_ms = _span(maker, size, minute)
    added = maker.calls([edge for edge in edges for _ in range(repeat)], start_ms, end_ms, **columns)
    return Drift(size.kind, size.size, tuple(edges), start_ms, end_ms, added)


def _changing(change: Change | None) -> "Callable[[Maker, Size, int], Drift]":
    def make(maker: Maker, size: Size, minute: int) -> Drift:
        start_ms, end_ms = _span(maker, size, minute)
        return Drift(size.kind, size.size, (maker.busy(),), start_ms, end_ms, change=change)

    return make


def _new_edge(calls: int) -> Size:
    def make(maker: Maker, size: Size, minute: int) -> Drift:
        src, dst = maker.pair()
        return _added(maker, size, minute, [maker.edges.number(src, dst, UNUSUAL_PORT)], calls, errors=0)

    return Size("new edge", f"{calls} calls" if calls > 1 else "1 call", 1, make)


def _new_port(calls: int) -> Size:
    def make(maker: Maker, size: Size, minute: int) -> Drift:
        src, dst, _ = maker.recording.edges[maker.busy(_inside)]
        return _added(maker, size, minute, [maker.edges.number(src, dst, 20_000 + maker.fresh())], calls, errors=0)

    return Size("new port", f"{calls} calls" if calls > 1 else "1 call", 1, make)


def _new_egress(calls: int) -> Size:
    def make(maker: Maker, size: Size, minute: int) -> Drift:
        services = maker.services()
        src = services[int(maker.rng.integers(len(services)))]
        edge = maker.edges.number(src, f"ext:stranger-{maker.fresh()}.example.net", 443)
        return _added(maker, size, minute, [edge], calls, errors=0)

    return Size("new egress", f"{calls} calls" if calls > 1 else "1 call", 1, make)


def _slow(factor: float) -> Size:
    def change(calls: Calls, rng: np.random.Generator) -> Calls:
        return replace(calls, latency_us=(calls.latency_us * factor).astype(np.int64))

    return Size("slow-down", f"x{factor:g}", LASTS, _changing(change))


def _errors(points: int) -> Size:
    def change(calls: Calls, rng: np.random.Generator) -> Calls:
        return replace(calls, errors=np.maximum(calls.errors, rng.random(len(calls)) < points / 100))

    return Size("errors", f"+{points} points", LASTS, _changing(change))


def _drop(percent: int, lasts: int = LASTS, kind: str = "drop") -> Size:
    def change(calls: Calls, rng: np.random.Generator) -> Calls:
        return calls.take(rng.random(len(calls)) >= percent / 100)

    return Size(kind, f"-{percent} %" if kind == "drop" else f"for {lasts} min", lasts, _changing(change))


def _louder(factor: int) -> Size:
    def change(calls: Calls, rng: np.random.Generator) -> Calls:
        return calls.take(np.repeat(np.arange(len(calls)), factor))

    return Size("more calls", f"x{factor}", LASTS, _changing(change))


def _scan_hosts(hosts: int) -> Size:
    def make(maker: Maker, size: Size, minute: int) -> Drift:
        services, subnet = maker.services(), maker.fresh()
        src = services[int(maker.rng.integers(len(services)))]
        targets = [f"ip:10.{66 + subnet // 256}.{subnet % 256}.{host + 1}" for host in range(hosts)]
        edges = [maker.edges.number(src, target, UNUSUAL_PORT) for target in targets]
        return _added(maker, size, minute, edges, errors=1, bytes_out=60, bytes_in=0)

    return Size("scan", f"{hosts} hosts", 1, make)


def _scan_ports(ports: int) -> Size:
    def make(maker: Maker, size: Size, minute: int) -> Drift:
        src, dst, _ = maker.recording.edges[maker.busy(_inside)]
        first = 30_000 + 128 * maker.fresh()
        edges = [maker.edges.number(src, dst, first + port) for port in range(ports)]
        return _added(maker, size, minute, edges, errors=1, bytes_out=60, bytes_in=0)

    return Size("scan", f"{ports} ports", 1, make)


def _exfiltration(megabytes: int) -> Size:
    def make(maker: Maker, size: Size, minute: int) -> Drift:
        each = megabytes * 1_000_000 // SENT_IN
        return _added(maker, size, minute, [maker.busy(_to_outside)], SENT_IN, errors=0, bytes_out=each)

    return Size("exfiltration", f"+{megabytes} MB", 1, make)


SIZES: tuple[Size, ...] = (
    *(_new_edge(calls) for calls in (1, 10, 100)),
    *(_new_port(calls) for calls in (1, 10, 100)),
    *(_new_egress(calls) for calls in (1, 10)),
    *(_slow(factor) for factor in (1.5, 2, 4, 10)),
    *(_errors(points) for points in (5, 20, 50)),
    *(_drop(percent) for percent in (50, 80, 100)),
    _drop(100, REMOVED_FOR, "removal"),
    *(_louder(factor) for factor in (3, 10, 30)),
    *(_scan_hosts(hosts) for hosts in (20, 100)),
    *(_scan_ports(ports) for ports in (20, 100)),
    *(_exfiltration(megabytes) for megabytes in (10, 100, 1_000)),
    Size(NOTHING, "-", LASTS, _changing(None)),
)
"""Every kind in every size."""
