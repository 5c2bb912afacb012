"""Seeded streams of edge records and a slow, plain reference of the edge scorer."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift.edge_stream.parameters import UNIT, EdgeScorerParams


@dataclass(frozen=True)
class Stream:
    """Records in log order: hashes of services and event times."""

    src: npt.NDArray[np.uint64]
    dst: npt.NDArray[np.uint64]
    event_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.src)

    def part(self, begin: int, end: int) -> "Stream":
        """Return some of the records."""
        return Stream(self.src[begin:end], self.dst[begin:end], self.event_ms[begin:end])


def hashes(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """Return distinct 64-bit hashes, as uniform as those of names."""
    return np.random.default_rng(seed).integers(0, 2**63, size=count, dtype=np.uint64) * np.uint64(2)


def make_stream(seed: int, records: int, services: int = 12, days: float = 3.0) -> Stream:
    """Return traffic with quiet gaps, bursts and a few records behind their time."""
    rng = np.random.default_rng(seed)
    names = hashes(seed, services)
    share = 1.0 / np.arange(1, services + 1)
    src = rng.choice(names, size=records, p=share / share.sum())
    dst = rng.choice(names, size=records)
    step = rng.choice([0, 0, 0, 0, 1_000, 60_000, 3_600_000], size=records) * rng.random(records)
    event_ms = np.cumsum(step)
    event_ms = (event_ms * (days * 86_400_000 / max(event_ms[-1], 1.0))).astype(np.int64) + 900_000_000_000
    late = rng.random(records) < 0.02
    event_ms[late] -= 90_000
    return Stream(src, dst, event_ms)


def reference_scores(stream: Stream, params: EdgeScorerParams) -> list[float]:
    """Score record by record with dictionaries and real logarithms: no sketches, no columns, no fixed point."""
    keep = params.daily_keep
    weights = params.weights
    now: dict[tuple[str, int], int] = defaultdict(int)
    fan: dict[int, int] = defaultdict(int)
    history: dict[int, int] = defaultdict(int)
    pending: dict[int, int] = defaultdict(int)
    load: dict[int, int] = defaultdict(int)
    usual: dict[int, int] = defaultdict(int)
    peak: dict[int, int] = defaultdict(int)
    first_tick: dict[int, int] = {}
    first_day: dict[tuple[int, int], int] = {}
    seen_now: set[tuple[int, int]] = set()
    minute, day, ticks, faded = -1, -1, 0, 0
    scores = []
    for s, d, at in zip(stream.src.tolist(), stream.dst.tolist(), stream.event_ms.tolist(), strict=True):
        this = max(at // 60_000, minute)
        if this != minute:
            for (side, key), count in now.items():
                capped = min(count, params.minute_cap) * UNIT
                if side == "src":
                    pending[key] += capped
                else:
                    usual[key] += capped
                    peak[key] = max(peak[key], count * UNIT)
            now.clear()
            fan.clear()
            seen_now.clear()
            for _ in range(this // 1440 - day if day >= 0 else 0):
                faded = faded * keep >> 16
                for key in list(pending):
                    believed = pending[key] // params.probation
                    history[key] += believed
                    pending[key] -= believed
                for table in (history, usual, peak):
                    for key in table:
                        table[key] = table[key] * keep >> 16
                for key in load:
                    load[key] >>= 1
            if minute >= 0:
                ticks, faded = ticks + 1, faded + UNIT
            minute, day = this, this // 1440
        now["src", s] += 1
        now["dst", d] += 1
        load[s] += UNIT
        first_tick.setdefault(s, ticks)
        if first_day.setdefault((s, d), day) == day and (s, d) not in seen_now:
            fan[s] += 1
        seen_now.add((s, d))
        known = history[s] + pending[s] // params.probation
        highest = max(peak[d], now["dst", d] * UNIT)
        scores.append(
            weights.rarity * math.log((faded + UNIT) / (known + UNIT))
            + weights.burst * math.log(now["src", s])
            + weights.persistence * math.log(load[s] / UNIT + 1)
            + weights.exposure * math.log(highest / UNIT + 1)
            - weights.usual_load * math.log(usual[d] / UNIT + 1)
            + weights.fan_out * math.log(fan[s] + 1)
            + weights.tenure * math.log((ticks + 1) / (ticks - first_tick[s] + 1))
        )
    return scores
