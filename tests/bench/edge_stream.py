"""Quality and speed of the edge scorer beside peers, on splits in time, with an ablation.

    drift bench edge-stream --data FILE [--part PART] [--json]

FILE is a parquet file of labelled edge records (columns as for `drift evaluate edges`). Peers are own compact
versions of the published algorithms, so that all are fed and judged alike. One process, one thread, seeded.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from deploy.commands.evaluate_edges import LabelledEdges, read_edges
from models.drift.edge_stream.parameters import EdgeScorerParams, EdgeWeights
from models.drift.edge_stream.ranking import win_shares
from models.drift.edge_stream.scorer import EdgeScorer

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]

SEED = 7
DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
FLOODS = ("neptune", "smurf")
MIDAS_ROWS, MIDAS_COLUMNS = 2, 1_024  # the demo settings of the authors' program
MIDAS_DECAY, MIDAS_THRESHOLD = 0.5, 1_000.0
CHOICES = 300
SAMPLED_NORMAL, SAMPLED_ATTACK = 60_000, 1_500

Scoring = Callable[[LabelledEdges], FloatColumn]


@dataclass(frozen=True)
class Quality:
    """ROC-AUC over all records, without floods, as mean over classes, and without floods at worst over leaving out
    any one further class."""

    all: float
    without_floods: float
    macro: float
    worst_without_one: float


def quality(scores: FloatColumn, edges: LabelledEdges) -> Quality:
    """Judge scores of all records of ``edges``."""
    is_attack = edges.class_of != 0
    shares = win_shares(scores[~is_attack], scores[is_attack])
    attack = edges.class_of[is_attack]
    count = np.bincount(attack, minlength=len(edges.classes)).astype(float)
    total = np.bincount(attack, weights=shares, minlength=len(edges.classes))
    present = count > 0
    is_flood = np.array([name in FLOODS for name in edges.classes])
    rest = present & ~is_flood
    left = [
        (total[rest].sum() - total[number]) / (count[rest].sum() - count[number])
        for number in np.flatnonzero(rest)
        if count[rest].sum() > count[number]
    ]
    return Quality(
        all=float(shares.mean()),
        without_floods=float(total[rest].sum() / count[rest].sum()),
        macro=float((total[present] / count[present]).mean()),
        worst_without_one=float(min(left)),
    )


def between(edges: LabelledEdges, begin_ms: int, end_ms: int) -> LabelledEdges:
    """Return the records of ``[begin_ms, end_ms)``."""
    low, high = np.searchsorted(edges.event_ms, [begin_ms, end_ms])
    return LabelledEdges(
        edges.src[low:high], edges.dst[low:high], edges.event_ms[low:high], edges.class_of[low:high], edges.classes
    )


def weeks_of(edges: LabelledEdges) -> list[int]:
    """Return the Mondays of the file, as epoch ms."""
    monday = (int(edges.event_ms[0]) - 4 * DAY_MS) // WEEK_MS * WEEK_MS + 4 * DAY_MS
    return list(range(monday, int(edges.event_ms[-1]) + 1, WEEK_MS))


def date_of(ms: int) -> str:
    """Return month and day."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%m-%d")


# --- peers -------------------------------------------------------------------------------------------------------


def trivial(edges: LabelledEdges) -> FloatColumn:
    """Score by the larger of the caller's and the callee's records in this minute so far: nothing is learned."""
    return np.maximum(_counts(edges.src, edges.event_ms), _counts(edges.dst, edges.event_ms))


def _counts(keys: npt.NDArray[np.uint64], event_ms: IntColumn) -> FloatColumn:
    minutes = event_ms // 60_000
    order = np.lexsort((np.arange(len(keys)), minutes, keys))
    opens = np.ones(len(keys), dtype=np.bool_)
    opens[1:] = (keys[order][1:] != keys[order][:-1]) | (minutes[order][1:] != minutes[order][:-1])
    start = np.maximum.accumulate(np.where(opens, np.arange(len(keys)), 0))
    out = np.empty(len(keys))
    out[order] = np.arange(len(keys)) - start + 1
    return out


@numba.njit(cache=True)
def _midas(ticks, cells, variant, decay, threshold):  # type: ignore[no-untyped-def]
    """MIDAS (0), MIDAS-R (1), MIDAS-F (2): Bhatia et al. 2020 and 2022, after their text and program."""
    kinds, rows, records = cells.shape
    columns = MIDAS_COLUMNS
    current = np.zeros((kinds, rows, columns))
    total = np.zeros((kinds, rows, columns))
    latest = np.zeros((kinds, rows, columns))
    out = np.empty(records)
    before = ticks[0]
    used = 1 if variant == 0 else kinds
    for i in range(records):
        t = float(ticks[i])
        if ticks[i] != before:
            if variant == 2:
                for k in range(kinds):
                    for r in range(rows):
                        for c in range(columns):
                            if latest[k, r, c] < threshold:
                                total[k, r, c] += current[k, r, c]
                            elif t > 2.0:
                                total[k, r, c] += total[k, r, c] / (t - 2.0)
            current *= decay if variant else 0.0
            before = ticks[i]
        best = 0.0
        for k in range(used):
            a, s = np.inf, np.inf
            for r in range(rows):
                c = cells[k, r, i]
                current[k, r, c] += 1.0
                if variant < 2:
                    total[k, r, c] += 1.0
                a, s = min(a, current[k, r, c]), min(s, total[k, r, c])
            value = 0.0
            if t > 1.0 and variant < 2 and s > 0.0:
                value = (a - s / t) ** 2 * t * t / (s * (t - 1.0))
            elif t > 1.0 and variant == 2:
                value = (a + s - a * t) ** 2 / ((a + s) * (t - 1.0))
            if variant == 2:
                for r in range(rows):
                    latest[k, r, cells[k, r, i]] = value
            best = max(best, value)
        out[i] = best
    return out


def midas(variant: int) -> Scoring:
    """Return a scoring by MIDAS (0), MIDAS-R (1) or MIDAS-F (2)."""

    def score(edges: LabelledEdges) -> FloatColumn:
        minutes = edges.event_ms // 60_000
        ticks = 1 + np.cumsum(np.diff(minutes, prepend=minutes[0]) != 0)
        mix = np.uint64(0x9E3779B97F4A7C15)
        keys = [(edges.src * mix) ^ edges.dst, edges.src, edges.dst]
        cells = np.empty((3, MIDAS_ROWS, len(edges)), dtype=np.int64)
        for kind, key in enumerate(keys):
            for row in range(MIDAS_ROWS):
                mixed = (key + np.uint64(SEED + row)) * mix
                cells[kind, row] = (mixed >> np.uint64(40)) % np.uint64(MIDAS_COLUMNS)
        scores: FloatColumn = _midas(ticks, cells, variant, MIDAS_DECAY, MIDAS_THRESHOLD)
        return scores

    return score


def ours(params: EdgeScorerParams | None = None) -> Scoring:
    """Return a scoring by the edge scorer."""
    return lambda edges: EdgeScorer(params).score(edges.src, edges.dst, edges.event_ms)


PEERS: dict[str, Scoring] = {
    "largest count of the minute": trivial,
    "MIDAS": midas(0),
    "MIDAS-R": midas(1),
    "MIDAS-F": midas(2),
    "edge scorer": ours(),
}


# --- parts of the report -----------------------------------------------------------------------------------------


def run_baselines(edges: LabelledEdges) -> Iterator[tuple[str, Quality]]:
    """Score the whole file and its last weeks, cold, with every method."""
    weeks = weeks_of(edges)
    for begin in (weeks[0], weeks[len(weeks) // 2], weeks[-1]):
        part = between(edges, begin, weeks[-1] + WEEK_MS)
        for name, score in PEERS.items():
            yield f"{name}, cold from {date_of(begin)}", quality(score(part), part)


def run_splits(edges: LabelledEdges) -> Iterator[tuple[str, Quality]]:
    """Score each later part with a state begun there (cold) and with all that came before (warm)."""
    weeks = weeks_of(edges)
    warm = ours()(edges)
    for number, begin in enumerate(weeks):
        end = weeks[-1] + WEEK_MS
        part = between(edges, begin, end)
        yield f"cold from {date_of(begin)} to the end", quality(ours()(part), part)
        if number:
            yield f"warm from {date_of(begin)} to the end", quality(warm[-len(part) :], part)
        week = between(edges, begin, begin + WEEK_MS)
        if number > 1:
            low = int(np.searchsorted(edges.event_ms, begin))
            yield f"warm, week of {date_of(begin)} alone", quality(warm[low : low + len(week)], week)


def run_ablation(edges: LabelledEdges) -> Iterator[tuple[str, Quality]]:
    """Leave out one part at a time; mean over the cold splits, and over parts with made traffic."""
    weeks = weeks_of(edges)
    parts = [between(edges, begin, weeks[-1] + WEEK_MS) for begin in weeks]
    made = with_made_traffic(edges, days_long=True)
    shipped = EdgeScorerParams()
    cases = {"all parts": shipped}
    for item in dataclasses.fields(EdgeWeights):
        weights = dataclasses.replace(shipped.weights, **{item.name: 0})
        cases[f"without {item.name}"] = dataclasses.replace(shipped, weights=weights)
    cases |= {
        "no cap on bursts in histories": dataclasses.replace(shipped, minute_cap=1_000_000),
        "no probation": dataclasses.replace(shipped, probation=1),
        "memory of 7 days": dataclasses.replace(shipped, memory_days=7),
        "no forgetting": dataclasses.replace(shipped, memory_days=100_000),
        "1 row of 4,096 cells": dataclasses.replace(shipped, rows=1, columns=4_096),
        "2 rows of 1,024 cells": dataclasses.replace(shipped, columns=1_024),
    }
    for name, params in cases.items():
        for where, chosen in (("", parts), (", made traffic", made)):
            judged = [dataclasses.astuple(quality(ours(params)(part), part)) for part in chosen]
            yield f"{name}{where}", Quality(*np.mean(judged, axis=0).tolist())


def _parts(edges: LabelledEdges) -> FloatColumn:
    """Return the parts of the score apart, each with its sign, in the order of the weights. Shape ``(7, N)``."""
    names = [item.name for item in dataclasses.fields(EdgeWeights)]
    columns = []
    for name in names:
        weights = EdgeWeights(**{other: int(other == name) for other in names})
        columns.append(ours(EdgeScorerParams(weights=weights))(edges))
    return np.array(columns)


def _sample(edges: LabelledEdges, rng: np.random.Generator) -> tuple[LabelledEdges, IntColumn]:
    rows = []
    for number in np.unique(edges.class_of):
        found = np.flatnonzero(edges.class_of == number)
        rows.append(rng.choice(found, min(len(found), SAMPLED_ATTACK if number else SAMPLED_NORMAL), replace=False))
    chosen = np.sort(np.concatenate(rows))
    sampled = LabelledEdges(
        edges.src[chosen], edges.dst[chosen], edges.event_ms[chosen], edges.class_of[chosen], edges.classes
    )
    return sampled, chosen


def run_choice(edges: LabelledEdges) -> Iterator[tuple[str, Quality]]:
    """Choose weights at random on one half of the weeks, report them on the other, beside the shipped weights."""
    rng = np.random.default_rng(SEED)
    weeks = weeks_of(edges)
    middle, end = weeks[len(weeks) // 2], weeks[-1] + WEEK_MS
    halves = {"first half": between(edges, weeks[0], middle), "second half": between(edges, middle, end)}
    parts = {name: _parts(half) for name, half in halves.items()}
    draws = rng.integers(0, 7, size=(CHOICES, len(dataclasses.fields(EdgeWeights))))
    shipped = np.array(dataclasses.astuple(EdgeWeights()))
    for chosen_on, half in halves.items():
        sample, rows = _sample(half, rng)
        small = parts[chosen_on][:, rows]

        def goodness(weights: IntColumn, small: FloatColumn = small, sample: LabelledEdges = sample) -> float:
            judged = quality(weights.astype(np.float64) @ small, sample)
            return judged.all + judged.without_floods + judged.macro

        best = max(draws, key=goodness)
        for name, other in halves.items():
            for label, weights in ((f"best of {CHOICES} on the {chosen_on}", best), ("shipped", shipped)):
                words = "-".join(str(int(weight)) for weight in weights)
                yield (
                    f"{label} ({words}), on the {name}, cold",
                    quality(weights.astype(np.float64) @ parts[name], other),
                )


# --- what the file does not hold: made traffic between its records ------------------------------------------------

HOUR = 60
DAY = 24 * HOUR


class Injector:
    """Adds seeded normal pollers and attacks of other kinds between the records of a file.

    Callers and callees are the file's own where the kind says "known", so that nothing but behaviour tells them.
    """

    def __init__(self, edges: LabelledEdges, rng: np.random.Generator) -> None:
        self._edges = edges
        self._rng = rng
        self._minutes = edges.event_ms // 60_000
        self._active = np.unique(self._minutes)
        callers, spoke = np.unique(edges.src, return_counts=True)
        self._known = rng.choice(callers[spoke >= 100], 8, replace=False)
        pairs = np.unique(np.stack([edges.src, edges.dst]), axis=1)
        callees, called_by = np.unique(pairs[1], return_counts=True)
        self._servers = callees[np.argsort(-called_by)[:5]]
        self._inside = rng.choice(callees, 60, replace=False)
        self._classes = list(edges.classes)
        self._added: list[tuple[IntColumn, npt.NDArray[np.uint64], npt.NDArray[np.uint64], int]] = []

    def _new(self) -> np.uint64:
        return np.uint64(self._rng.integers(0, 2**63)) * np.uint64(2)

    def _begin(self, lasts: int) -> int:
        early, late = len(self._active) // 10, int(np.searchsorted(self._active, self._active[-1] - lasts))
        return int(self._rng.choice(self._active[early : max(late, early + 1)]))

    def _add(self, name: str, minutes: IntColumn, src: Any, dst: Any) -> None:
        if name not in self._classes:
            self._classes.append(name)
        shape = len(minutes)
        self._added.append(
            (minutes, np.broadcast_to(src, shape), np.broadcast_to(dst, shape), self._classes.index(name))
        )

    def _attack(self, name: str, lasts: int, per_minute: int, src: Any, dst: Any) -> None:
        begin = self._begin(lasts)
        minutes = np.repeat(np.arange(begin, begin + lasts), per_minute)
        self._add(name, minutes, src, self._rng.choice(dst, len(minutes)) if np.ndim(dst) else dst)

    def add_pollers(self) -> None:
        """Add normal monitoring: a steady poller and its answers, a bulk job, a sweep, twelve rare pollers."""
        rng = self._rng
        every = np.arange(self._active[0], self._active[-1])
        working = every[every % DAY < DAY // 2]
        steady, target = self._new(), self._servers[0]
        minutes = np.repeat(working, rng.poisson(8, len(working)))
        self._add("-", minutes, steady, target)
        self._add("-", minutes, target, steady)
        self._add("-", np.repeat(working[working % 15 == 0], 200), self._new(), self._servers[1])
        rounds = working[working % 30 == 0]
        self._add("-", np.repeat(rounds, len(self._inside)), self._new(), np.tile(self._inside, len(rounds)))
        for _ in range(12):
            step = int(rng.choice([5, 10, 15]))
            self._add("-", every[every % step == rng.integers(step)], self._new(), rng.choice(self._servers))

    def add_attacks(self, *, days_long: bool) -> None:
        """Add three of each kind; with ``days_long`` also pollings of three days, which then outnumber all."""
        rng, known = self._rng, self._known
        for turn in range(3):
            server = self._servers[turn]
            self._attack("made: guessing", 60, 8, rng.choice(known), server)
            self._attack("made: request flood", 15, 60, rng.choice(known), server)
            self._attack("made: guessing, fast", 10, 200, self._new() if turn else rng.choice(known), server)
            self._attack("made: sweep", 5, 50, rng.choice(known), self._inside)
            self._attack("made: slow scan", 300, 1, rng.choice(known), server)
            self._attack("made: tunnel", 50, 3, rng.choice(known), rng.choice(self._inside))
            self._attack("made: newcomer inside", 120, 1, self._new(), rng.choice(self._inside))
            self._attack("made: polling, known", 8 * HOUR, 6, rng.choice(known), server)
            self._attack("made: polling, newcomer", 8 * HOUR, 6, self._new(), server)
            for _ in range(10):
                self._attack("made: single call", 1, 1, rng.choice(known), rng.choice(self._servers))
            if days_long:
                self._attack("made: days of polling, known", 3 * DAY, 6, rng.choice(known), server)
                self._attack("made: days of polling, newcomer", 3 * DAY, 6, self._new(), server)

    def build(self) -> LabelledEdges:
        """Return all records in order of time; the file's own keep their order within a minute."""
        own, edges = self._minutes, self._edges
        begins, ends = np.searchsorted(own, own), np.searchsorted(own, own, "right")
        within = [(np.arange(len(own)) - begins + 0.5) / (ends - begins)]
        within += [self._rng.random(len(minutes)) for minutes, *_ in self._added]
        minutes = np.concatenate([own, *(added[0] for added in self._added)])
        order = np.lexsort((np.concatenate(within), minutes))
        kinds = [np.full(len(added[0]), added[3], dtype=np.int64) for added in self._added]
        return LabelledEdges(
            np.concatenate([edges.src, *(added[1] for added in self._added)])[order],
            np.concatenate([edges.dst, *(added[2] for added in self._added)])[order],
            minutes[order] * 60_000,
            np.concatenate([edges.class_of, *kinds])[order],
            self._classes,
        )


def with_made_traffic(edges: LabelledEdges, *, days_long: bool) -> list[LabelledEdges]:
    """Return four parts of the file with seeded pollers and attacks in them."""
    weeks = [*weeks_of(edges), weeks_of(edges)[-1] + WEEK_MS]
    made = []
    for number, (begin, end) in enumerate(((0, 3), (2, 5), (3, 6), (4, 6))):
        injector = Injector(between(edges, weeks[begin], weeks[end]), np.random.default_rng(SEED + number))
        injector.add_pollers()
        injector.add_attacks(days_long=days_long)
        made.append(injector.build())
    return made


def run_injected(edges: LabelledEdges) -> Iterator[tuple[str, Quality]]:
    """Judge peers and scorer on parts of the file with made traffic in them, cold; mean over the parts."""
    for days_long in (False, True):
        made = with_made_traffic(edges, days_long=days_long)
        words = "with attacks that poll for days" if days_long else "with pollers and attacks of other kinds"
        for name in ("largest count of the minute", "MIDAS-R", "MIDAS-F", "edge scorer"):
            judged = [dataclasses.astuple(quality(PEERS[name](part), part)) for part in made]
            yield f"{name}, {words}", Quality(*np.mean(judged, axis=0).tolist())


def run_speed(edges: LabelledEdges) -> dict[str, float]:
    """Return scored records a second of one core's time, best of three, and the memory of the state."""
    result: dict[str, float] = {}
    for use_numba in (True, False):
        best = np.inf
        for turn in range(4 if use_numba else 3):
            scorer = EdgeScorer(use_numba=use_numba)
            begin = time.process_time()
            scorer.score(edges.src, edges.dst, edges.event_ms)
            if turn or not use_numba:  # the first compiled turn compiles
                best = min(best, time.process_time() - begin)
        result[f"edges_per_s_{scorer.engine}"] = round(len(edges) / best)
    result["state_bytes"] = EdgeScorer().state.size_bytes
    return result


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Read the command line and measure; prints tables unless ``--json`` is given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--part", choices=["baselines", "splits", "injected", "ablation", "choice", "speed", "all"], default="all"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    edges = read_edges(arguments.data, labelled=True)
    result: dict[str, Any] = {}
    runs = {
        "baselines": run_baselines,
        "splits": run_splits,
        "injected": run_injected,
        "ablation": run_ablation,
        "choice": run_choice,
    }
    for part, run in runs.items():
        if arguments.part not in (part, "all"):
            continue
        rows = result[part] = {}
        if not arguments.json:
            print(f"\n{part:76} {'all':>7} {'no flood':>8} {'classes':>7} {'worst':>7}")
        for name, judged in run(edges):
            rows[name] = dataclasses.asdict(judged)
            if not arguments.json:
                figures = f"{judged.all:7.4f} {judged.without_floods:8.3f} {judged.macro:7.3f}"
                print(f"{name:76} {figures} {judged.worst_without_one:7.3f}", flush=True)
    if arguments.part in ("speed", "all"):
        result["speed"] = run_speed(edges)
        if not arguments.json:
            for name, value in result["speed"].items():
                print(f"{name:76} {value:,}")
    return result


if __name__ == "__main__":
    measured = main()
    if "--json" in sys.argv:
        print(json.dumps(measured))
