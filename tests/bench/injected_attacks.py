"""Made attacks on a sensor's second day, between its real connections: which of them does a backtest name?

Seeded. Whoever attacks has prefixes of its own that the real traffic lacks, so a finding that names one is about it.
This is made data: it says what a design sees and what it cannot see, not how good it is elsewhere.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SEED = 7
HOUR_S = 3_600.0
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attack:
    """What is done, its connections in Zeek's columns, and the names of those outside who take part."""

    what: str
    rows: list[Row]
    outside: frozenset[str]

    def findings(self, found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the findings that name somebody of this attack: as subject, or in the edges they list."""
        return [
            finding
            for finding in found
            if self.outside
            & {finding["src"], finding["dst"], *(e[end] for e in finding["edges"] for end in ("src", "dst"))}
        ]


class _Maker:
    def __init__(self, rows: Sequence[Row]) -> None:
        addresses = [row[end] for row in rows for end in ("id.orig_h", "id.resp_h")]
        values, counts = np.unique(addresses, return_counts=True)
        self.sensor = str(values[counts.argmax()])
        self.columns = list(rows[0])
        self.second_day_s = float(min(row["ts"] for row in rows)) + 24 * HOUR_S
        self.rng = np.random.default_rng(SEED)
        self._free = self._unused(set(addresses))

    @staticmethod
    def _unused(taken: set[str]) -> Iterator[str]:
        prefixes = {address.rsplit(".", 2)[0] for address in taken if ":" not in address}
        for first in range(11, 100):
            for second in range(256):
                if f"{first}.{second}" not in prefixes:
                    yield f"{first}.{second}.7.7"

    def strangers(self, count: int) -> list[str]:
        return [next(self._free) for _ in range(count)]

    def connection(self, ts: float, src: str, dst: str, port: int, out: int, back: int, state: str = "SF") -> Row:
        packets = {"orig_pkts": 5 + out // 1_400, "resp_pkts": 4 + back // 1_400}
        values: Row = {
            "ts": float(ts),
            "id.orig_h": src,
            "id.orig_p": int(self.rng.integers(32_768, 61_000)),
            "id.resp_h": dst,
            "id.resp_p": port,
            "proto": "tcp",
            "service": "-",
            "duration": 0.4,
            "orig_bytes": out,
            "resp_bytes": back,
            "conn_state": state,
            "missed_bytes": 0,
            "history": "ShADadFf",
            **packets,
        }
        return {name: values.get(name) for name in self.columns}

    def attack(self, what: str, who: Sequence[str], rows: list[Row]) -> Attack:
        names = (f"ext:net/{ipaddress.ip_network((address, 16), strict=False)}" for address in who)
        return Attack(what, rows, frozenset(names))

    def at(self, hour: float) -> float:
        return self.second_day_s + hour * HOUR_S

    def clock(self, start_h: float, hours: float, every_s: float, jitter: float) -> list[float]:
        times = self.at(start_h) + np.cumsum(
            every_s * self.rng.uniform(1 - jitter, 1 + jitter, int(hours * 7_200 / every_s))
        )
        return [float(ts) for ts in times if ts < self.at(start_h + hours)]

    def chance(self, start_h: float, hours: float, every_s: float) -> list[float]:
        times = self.at(start_h) + np.cumsum(self.rng.exponential(every_s, int(hours * 7_200 / every_s) + 20))
        return [float(ts) for ts in times if ts < self.at(start_h + hours)]


def attacks_on(rows: Sequence[Row]) -> list[Attack]:
    """Return attacks on, and by, the host that takes part in most of ``rows``."""
    make = _Maker(rows)
    sensor, made = make.sensor, []

    def outbound(what: str, times: Iterable[float], port: int, out: int, back: int) -> None:
        (peer,) = make.strangers(1)
        made.append(make.attack(what, [peer], [make.connection(ts, sensor, peer, port, out, back) for ts in times]))

    def inbound(what: str, times: Iterable[float], port: int, out: int, back: int, callers: int = 1) -> None:
        who = make.strangers(callers)
        calls = [make.connection(ts, who[n % callers], sensor, port, out, back) for n, ts in enumerate(times)]
        made.append(make.attack(what, who, calls))

    outbound("calls home each minute, jitter 10 %, 10 h", make.clock(1, 10, 60, 0.1), 443, 220, 410)
    outbound("calls home each 5 min, jitter 30 %, 12 h", make.clock(2, 12, 300, 0.3), 443, 220, 410)
    outbound("calls home each 30 min, jitter 20 %, 20 h", make.clock(1, 20, 1_800, 0.2), 443, 220, 410)
    outbound("calls home each 5 min, jitter 90 %, 12 h", make.clock(2, 12, 300, 0.9), 443, 220, 410)
    inbound("polls an implant behind port 80 each 2 min, 10 h", make.clock(3, 10, 120, 0.2), 80, 90, 700)
    inbound("gets an answer on port 8443, never served before", [make.at(4.01)], 8_443, 900, 2_000)
    outbound("calls out to port 4444, never called before", [make.at(5.01)], 4_444, 900, 2_000)
    outbound("sends 80 MB out at once", [make.at(6.01)], 443, 80_000_000, 9_000)
    inbound("fetches 300 MB at once from port 80", [make.at(7.01)], 80, 600, 300_000_000)
    inbound("3,000 requests of one caller in a minute", np.linspace(make.at(8), make.at(8) + 50, 3_000), 80, 300, 900)
    inbound(
        "one request each of 400 callers in a minute", np.linspace(make.at(9), make.at(9) + 50, 400), 80, 300, 900, 400
    )
    peers = make.strangers(200)
    sweep = [make.connection(make.at(10) + n / 5, sensor, peer, 22, 0, 0, "S0") for n, peer in enumerate(peers)]
    made.append(make.attack("sweeps 200 hosts outside for port 22 in a minute", peers, sweep))
    inbound("guesses passwords, by chance each 3 min, 12 h", make.chance(3, 12, 180), 22, 1_400, 1_700)
    inbound("logs in once by ssh, from nowhere ever seen", [make.at(11.01)], 22, 4_000, 5_200)
    outbound("sends 30 MB out in pieces, by chance each minute, 10 h", make.chance(3, 10, 60), 443, 50_000, 700)
    return made
