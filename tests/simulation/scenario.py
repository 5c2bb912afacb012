"""What a seed means: the flows that producers push, and every fault that happens. Drawn once, before anything runs."""

import json
import random
from dataclasses import dataclass, field, replace

EPOCH_MS = 1_763_850_000_000
WINDOW_MS = 8_000
LATENESS_MS = 15_000
"""More than a fetch may be old (10 s) plus the producers' disorder and workers' skew: a prompt row is never late."""
IDLE_MS = 4_000
SKEW_MS = 5_000
MAX_WAIT_MS = 60_000
DISORDER_S = 3.0
WORKER_SKEW_MS = 500
PRODUCE_S = 14.0
SETTLE_S = 150.0
"""From the last fault on, silence closes every window within less than this."""
RESTART_S = 24.0
"""An embedded installation is quiet, stops and starts again within so long."""
PARTITIONS = 3
SOURCES = PARTITIONS
TENANT_PAIRS = (("acme", "hooli"), ("acme", "hooli"), ("acme", "globex"), ("initech", "globex"))
"""Their partitions of three: acme 1, globex 2, initech 0, hooli 1."""
DAY_S = 86_400.0

MAIN, SECOND = "default", "second"
"""Lanes. The second one has a source topic of its own and sees some of the same edges."""

PROMPT, TARDY, DEAD = "prompt", "tardy", "dead"
"""What must become of a row: on time in its window; counted once, late or in whatever window; a dead letter."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record that a producer pushed, as the check counts it.

    Attributes:
        calls: a power of two, each once an edge: sums tell which rows are in.
        window: index of the window of its event time.
    """

    tenant: str
    src: str
    dst: str
    calls: int
    is_server: bool
    window: int
    fate: str
    lane: str = MAIN


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a source topic. ``dead``: indexes of its records that become dead letters; -1 is the whole."""

    at_s: float
    partition: int
    value: bytes
    rows: tuple[Row, ...]
    dead: tuple[int, ...] = ()
    lane: str = MAIN


@dataclass(slots=True)
class Scenario:
    """Input and faults of one schedule. Times in seconds of true time from the start.

    Attributes:
        crashes: effect number to when it strikes: ``before``, ``after`` or ``wire`` (dead, the request still lands).
        recrash: so many effects after the restart of a crashed worker the next one strikes.
        zombies: (from, until, worker): its partitions are given away and it does not know.
        rebalances: times at which partitions move.
        outages: (from, until) in which no produce succeeds. stalls: (from, until, source partition) without fetches.
        produce_faults: chances of (failure, timeout after append, timeout and the record lands much later).
        insert_faults: chance that an insert fails, before or after it took hold. down: (from, until) of ClickHouse.
        pauses: (from, until, source partition) for a flood.
        truncations: (at, source partition, share of the unread records that retention deletes).
        takeover_s: shortest and longest time until a dead worker's partitions are given to others.
        incarnation_s: when an embedded installation stops and starts with an empty broker; ``None``: never.
    """

    seed: int
    messages: list[Message]
    controls: list[tuple[float, bytes, bytes]] = field(default_factory=list)
    append_time: bool = False
    max_record_bytes: int = 512 * 1024  # or so few that every row is a record of its own
    fetch_s: float = 4.0
    crashes: dict[int, str] = field(default_factory=dict)
    recrash: list[tuple[int, str]] = field(default_factory=list)
    zombies: list[tuple[float, float, int]] = field(default_factory=list)
    rebalances: list[float] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    stalls: list[tuple[float, float, int]] = field(default_factory=list)
    produce_faults: tuple[float, float, float] = (0.0, 0.0, 0.0)
    insert_faults: float = 0.0
    down: tuple[float, float] = (0.0, 0.0)
    pauses: list[tuple[float, float, int]] = field(default_factory=list)
    truncations: list[tuple[float, int, float]] = field(default_factory=list)
    accept_loss: bool = False
    incarnation_s: float | None = None
    learning_windows: int = 0
    checkpoint_every_ms: int = 14_000
    skews_ms: tuple[int, int] = (0, 0)
    heal_s: float = PRODUCE_S
    takeover_s: tuple[float, float] = (1.0, 5.0)
    real_rows: bool = False

    @property
    def has_second_lane(self) -> bool:
        """Say whether two lanes are compared."""
        return any(message.lane == SECOND for message in self.messages)


class _Input:
    """Draws messages; keeps count of each edge's rows so that every one has a power of two of its own."""

    def __init__(self, rng: random.Random, tenants: tuple[str, str], with_latency: bool, lane: str = MAIN) -> None:
        self._rng = rng
        self._lane = lane
        self._tenants = tenants
        self._with_latency = with_latency
        self._rows_of: dict[tuple[str, str, str], int] = {}

    def row(self, at_s: float, event_s: float, fate: str, dst: str, tenant: str, side: str = "") -> tuple[str, Row]:
        """Return a flow's JSON and how it counts. ``side`` ``server`` repeats the calls of the client's row before."""
        src = "a"
        key = (tenant, src, dst)
        number = self._rows_of.get(key, 0)
        if side == "server":
            number -= 1
        else:
            self._rows_of[key] = number + 1
        assert number < 31, "calls of a row stay below 2**32"
        calls = 1 << number
        time_ms = EPOCH_MS + int(event_s * 1000)
        extra = f',"reporter":"{side}"' if side else ""
        if self._with_latency:
            extra += f',"latency_us":{self._rng.randrange(100, 9_000)}'
        text = (
            f'{{"time_ms":{time_ms},"src":"{src}","dst":"{dst}","tenant":"{tenant}","calls":{calls},'
            f'"port":80,"protocol":"tcp","host":"h{self._rng.randrange(4)}"{extra}}}'
        )
        return text, Row(tenant, src, dst, calls, side == "server", time_ms // WINDOW_MS, fate, self._lane)

    def prompt(self, at_s: float, tenant_number: int | None = None) -> tuple[str, Row]:
        """Draw a row that must be on time."""
        rng = self._rng
        known = ("b", "c", "d") if at_s > 7.0 else ("b", "c")
        tenant = self._tenants[rng.random() < 0.4 if tenant_number is None else tenant_number]
        return self.row(at_s, max(0.0, at_s - rng.random() * DISORDER_S), PROMPT, rng.choice(known), tenant)

    def tardy(self, at_s: float) -> tuple[str, Row]:
        """Draw a row far behind, or ahead of the clock."""
        rng = self._rng
        event_s = at_s + 7.5 if rng.random() < 0.3 else max(-20.0, at_s - 16.0 - rng.random() * 20.0)
        return self.row(at_s, event_s, TARDY, rng.choice(("b", "c")), self._tenants[rng.random() < 0.4])


def _messages(
    rng: random.Random, source: _Input, tenants: tuple[str, str], count: int, stops_s: float | None
) -> list[Message]:
    first_s, last_s = 1.0 + rng.random() * 3.0, 11.5 + rng.random() * 2.0  # two windows are open, whatever is drawn
    times = sorted([first_s, last_s, *(rng.random() * PRODUCE_S for _ in range(count - 2))])
    surest = {times.index(first_s): 0, times.index(last_s): 1}
    if stops_s is not None:
        times = [at if at < stops_s else at + RESTART_S for at in times]
    elif rng.random() < 0.4:  # a phase in which nobody says anything
        gap_from = rng.random() * 5.0 + 4.0
        times = [at if at < gap_from else at + 8.0 for at in times]
    messages = []
    silent = rng.randrange(SOURCES) if rng.random() < 0.3 else None  # one partition falls idle, or never has a word
    silent_from = rng.choice((0.0, 6.0))
    for number, at_s in enumerate(times):
        partition = number if number < SOURCES else rng.randrange(SOURCES)
        if partition == silent and at_s >= silent_from:
            partition = (partition + 1) % SOURCES
        sort = rng.random()
        if number in surest:
            drawn = [source.prompt(at_s, surest[number]), source.prompt(at_s)]
        elif sort < 0.4:
            drawn = [source.prompt(at_s)]
        elif sort < 0.7:
            drawn = [source.prompt(at_s) for _ in range(rng.randrange(2, 4))]
        elif sort < 0.88:
            drawn = [source.tardy(at_s)]
        elif sort < 0.91:
            drawn = [source.row(at_s, at_s + 10 * DAY_S, DEAD, "b", tenants[0])]
        elif sort < 0.95:
            messages.append(Message(at_s, partition, b"junk", (), (-1,)))
            continue
        else:
            text, row = source.prompt(at_s)
            bad = '{"time_ms":"now","src":"a","dst":"b","tenant":"acme"}'
            messages.append(Message(at_s, partition, f"[{text},{bad}]".encode(), (row,), (1,)))
            continue
        texts, rows = [text for text, _ in drawn], tuple(row for _, row in drawn)
        value = texts[0] if len(texts) == 1 else "[" + ",".join(texts) + "]"
        dead = (0,) if rows[0].fate == DEAD else ()
        messages.append(Message(at_s, partition, value.encode(), rows, dead))
    for _ in range(rng.choice((0, 1, 1))):  # a call that both ends report, one after the other
        at_s, later_s = rng.random() * (PRODUCE_S - 4.0), rng.random() * 2.5
        at_s += RESTART_S if stops_s is not None and at_s > stops_s - 2.5 else 0.0
        partition, tenant = rng.randrange(SOURCES), tenants[rng.random() < 0.5]
        for side, when_s in (("client", at_s), ("server", at_s + later_s)):
            text, row = source.row(when_s, at_s, PROMPT, "p", tenant, side)
            messages.append(Message(when_s, partition, text.encode(), (row,)))
    messages.sort(key=lambda message: message.at_s)
    return messages


def _halves(rng: random.Random, tenants: tuple[str, str], stops_s: float | None) -> list[Message]:
    """Return the two halves of a call in either order, or one that stays alone: neither names the other end."""
    if rng.random() < 0.6:
        return []
    source = _Input(rng, tenants, with_latency=rng.random() < 0.25)
    tenant, pair, is_alone = tenants[rng.random() < 0.5], rng.randrange(1 << 62), rng.random() < 0.2
    at_s, later_s = rng.random() * (PRODUCE_S - 4.0), rng.random() * 2.5
    at_s += RESTART_S if stops_s is not None and at_s > stops_s - 2.5 else 0.0
    called = "r" if is_alone else "q"
    sides = [("client", "a", f"ext:{called}"), ("server", "ext:unknown", called)]
    rng.shuffle(sides)
    messages: list[Message] = []
    for (side, src, dst), when_s in zip(sides[: 1 if is_alone else 2], (at_s, at_s + later_s), strict=False):
        text, row = source.row(when_s, at_s, PROMPT, called, tenant, "client" if not messages else "server")
        flow = {**json.loads(text), "src": src, "dst": dst, "reporter": side, "pair": pair}
        # One that stays alone is the only report of its edge; else the edge is who called and who answered.
        row = replace(row, src=src, dst=dst) if is_alone else replace(row, is_server=side == "server")
        value = json.dumps(flow, separators=(",", ":")).encode()
        messages.append(Message(when_s, rng.randrange(SOURCES), value, (row,)))
    return messages


def draw(seed: int) -> Scenario:
    """Return the schedule of a seed."""
    rng = random.Random(seed)
    tenants = rng.choice(TENANT_PAIRS)
    source = _Input(rng, tenants, with_latency=seed % 4 == 0)
    stops_s = 5.0 + rng.random() * 5.0 if rng.random() < 0.08 else None
    messages = _messages(rng, source, tenants, rng.randrange(4, 7), stops_s)
    # Drawn apart: what else a seed means does not hang on them.
    messages = sorted([*messages, *_halves(random.Random(seed ^ 0x4A1F), tenants, stops_s)], key=lambda m: m.at_s)
    scenario = Scenario(seed, messages, incarnation_s=stops_s)
    scenario.skews_ms = (rng.randrange(-WORKER_SKEW_MS, WORKER_SKEW_MS), rng.randrange(-WORKER_SKEW_MS, WORKER_SKEW_MS))
    scenario.append_time = rng.random() < 0.3
    scenario.max_record_bytes = 400 if rng.random() < 0.15 else scenario.max_record_bytes
    scenario.fetch_s = rng.choice((2.0, 5.0, 8.0))
    scenario.learning_windows = rng.choice((0, 0, 1))
    scenario.checkpoint_every_ms = rng.choice((6_000, 12_000, 20_000))
    scenario.real_rows = seed % 16 == 5
    if rng.random() < 0.2:
        value = json.dumps({"learning_windows": rng.randrange(3)}).encode()
        scenario.controls.append((rng.random() * 9.0, f"{tenants[0]}:tenant-settings:x".encode(), value))
    _draw_faults(rng, scenario)
    if seed % 5 == 2 and not scenario.truncations and scenario.incarnation_s is None:
        # By a generator of its own, so that all other schedules stay what they were.
        scenario.messages += _second_lane(random.Random(seed ^ 0xB), tenants)
    return scenario


def _second_lane(rng: random.Random, tenants: tuple[str, str]) -> list[Message]:
    """Draw what the second lane reports: mostly edges that the first has, now and then before it."""
    source = _Input(rng, tenants, with_latency=False, lane=SECOND)
    messages = []
    for at_s in sorted(1.0 + rng.random() * (PRODUCE_S - 2.0) for _ in range(rng.randrange(3, 6))):
        drawn = [source.prompt(at_s) for _ in range(rng.randrange(1, 3))]
        value = "[" + ",".join(text for text, _ in drawn) + "]"
        messages.append(Message(at_s, 0, value.encode(), tuple(row for _, row in drawn), lane=SECOND))
    return messages


def _draw_faults(rng: random.Random, scenario: Scenario) -> None:
    def span(longest_s: float, latest_s: float = PRODUCE_S) -> tuple[float, float]:
        from_s = rng.random() * latest_s
        return from_s, from_s + 1.0 + rng.random() * longest_s

    for _ in range(rng.choice((0, 1, 2, 2, 3))):
        scenario.crashes[rng.randrange(1, rng.choice((40, 90)))] = rng.choice(("before", "after", "after", "wire"))
    for _ in range(rng.choice((0, 0, 1))):
        scenario.recrash.append((rng.randrange(1, 15), rng.choice(("before", "after", "wire"))))
    if rng.random() < 0.3:
        scenario.zombies.append((*span(12.0), rng.randrange(2)))
    if rng.random() < 0.4:
        scenario.rebalances.append(rng.random() * PRODUCE_S)
    if rng.random() < 0.15:
        scenario.outages.append(span(6.0))
    stalls = rng.random()
    if stalls < 0.25:
        scenario.stalls.append((*span(18.0), rng.randrange(SOURCES)))
    elif stalls < 0.4:  # so long that a window would close without what waits
        scenario.stalls.append((rng.random() * 4.0, 25.0 + rng.random() * 6.0, rng.randrange(SOURCES)))
    if rng.random() < 0.5:
        scenario.produce_faults = (rng.random() * 0.06, rng.random() * 0.06, rng.random() * 0.03)
    if rng.random() < 0.5:
        scenario.insert_faults = rng.random() * 0.3
    if rng.random() < 0.15:
        scenario.down = span(20.0)
    special = rng.random() if scenario.incarnation_s is None else 1.0
    if special < 0.08:
        scenario.pauses.append((*span(10.0), rng.randrange(SOURCES)))
    elif special < 0.18:
        scenario.truncations.append((3.0 + rng.random() * 10.0, rng.randrange(SOURCES), rng.choice((0.5, 1.0))))
        scenario.accept_loss = rng.random() < 0.5
        if rng.random() < 0.7:  # so that something is unread when retention comes
            at_s, partition, _ = scenario.truncations[0]
            scenario.stalls.append((max(0.0, at_s - 12.0), at_s + 1.0, partition))
    last_s = [*(message.at_s for message in scenario.messages), *(until_s for _, until_s, _ in scenario.stalls)]
    scenario.heal_s = max(PRODUCE_S, *last_s)
