"""Which faults, in which order: a function of the seed. Pure."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

KILL, ZOMBIE, SCALE, ROLL = (
    "worker killed",
    "worker frozen past its session",
    "worker added and removed",
    "worker stopped",
)
BROKER_STOP, BROKER_KILL, BROKER_DISK = "broker restarted", "broker killed", "broker's disk full"
AWAY, UNAVAILABLE, HANG, CLOSE = (
    "ClickHouse away",
    "ClickHouse 503",
    "ClickHouse hangs",
    "ClickHouse stores, then closes",
)
CLICKHOUSE_DISK, TEMPORARY_DISK = "ClickHouse's disk full", "temporary directory full"
BEHIND, FLOOD = "a source partition far behind", "a tenant floods"
SKEW = "producers' clocks off by -9 to +15 s"

ON_THE_BROKER = frozenset({BROKER_STOP, BROKER_KILL, BROKER_DISK})
IN_TURN = (ZOMBIE, SCALE, ROLL, BROKER_STOP, BROKER_KILL, BROKER_DISK)
"""One at a time with the kills: the next when the system is well again."""
BESIDE = {AWAY: 120.0, UNAVAILABLE: 60.0, HANG: 45.0, CLOSE: 45.0, BEHIND: 60.0, FLOOD: 15.0} | {
    CLICKHOUSE_DISK: 30.0,
    TEMPORARY_DISK: 30.0,
}
"""Seconds of those that go on beside the others."""


@dataclass(frozen=True)
class Plan:
    """Faults in order. ``beside``: (seconds after the start, kind, seconds)."""

    in_turn: tuple[str, ...]
    beside: tuple[tuple[float, str, float], ...]


def make_plan(
    seed: int, seconds: float, kills: int, each: int, without: frozenset[str] = frozenset(), scale: float = 1.0
) -> Plan:
    """Return a plan: ``kills`` kills, every other fault ``each`` times; what goes on beside is spread over ``seconds``.

    Args:
        without: faults that cannot be had here. scale: of the durations in `BESIDE`.
    """
    rng = random.Random(f"plan {seed}")
    in_turn = [kind for kind in IN_TURN if kind not in without for _ in range(each)]
    rng.shuffle(in_turn)
    # Kills in between: the first fault and the last are kills, and no long row of either kind.
    places = sorted(rng.sample(range(1, kills + len(in_turn)), len(in_turn))) if in_turn else []
    turns = [KILL] * (kills + len(in_turn))
    for place, kind in zip(places, in_turn, strict=True):
        turns[place] = kind
    beside = [kind for kind in BESIDE if kind not in without for _ in range(each)]
    rng.shuffle(beside)
    durations = {kind: BESIDE[kind] * scale for kind in BESIDE}
    return Plan(tuple(turns), tuple(_spread(beside, durations, seconds)))


def _spread(kinds: list[str], durations: Mapping[str, float], seconds: float) -> list[tuple[float, str, float]]:
    """Put faults one after the other with equal gaps."""
    busy = sum(durations[kind] for kind in kinds)
    gap = max(1.0, (0.95 * seconds - busy) / (len(kinds) + 1))
    found, at = [], gap
    for kind in kinds:
        found.append((at, kind, durations[kind]))
        at += durations[kind] + gap
    return found
