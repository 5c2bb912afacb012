"""Real traffic through `drift backtest`, as a user runs it: how many findings an hour, which, and the worst of them.

    drift bench real-backtests DIR [--injected] [--keep FOLDER]

DIR holds nezha_*_calls_*.parquet (calls between services: ts_us, src, dst, server_us, client_us) and
zeek_conn_rita_*.parquet (a sensor's connections, in Zeek's columns). They are written as producers write them, calls as
canonical JSON lines, connections as a conn.log in the order in which Zeek writes it, when a connection ends; then the
command runs on them with the settings it has by default: connections once without an inventory and once with one that
names the sensor. Where DIR has nezha_cases.json, findings are held against the faults that were injected there.
``--injected`` puts made attacks between the sensor's connections and says which are found (injected_attacks.py).
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cramjam
import pyarrow.parquet as pq

from tests.bench.injected_attacks import Attack, attacks_on

HOUR_MS = 3_600_000
SENSOR_ADDRESS, SENSOR = "64.225.56.201", "sensor"
KNOWN_BAD = (("ext:net/73.54.0.0/16", "ext:net/64.225.0.0/16"), ("ext:net/73.54.0.0/16", SENSOR))
"""Names of 73.54.23.243 -> 64.225.56.201, the session that the Zeek data is about, without and with an inventory."""
SHOWN = 10
GOAL_A_DAY = 50
"""Findings a day after learning, at most: the goal for the sensor's data."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file and how the command reads it. ``span_ms``: of event time in it. ``inventory``: a file of names."""

    path: Path
    format: str
    span_ms: int
    inventory: Path | None = None


def write_calls(parquet: Path, folder: Path) -> Input:
    """Write calls as canonical JSON lines, zstd. The latency is the caller's, else the callee's."""
    table = pq.read_table(parquet, columns=["ts_us", "src", "dst", "server_us", "client_us"])
    names = ("ts_us", "src", "dst", "server_us", "client_us")
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    lines = [
        json.dumps(
            {
                "time_ms": ts_us // 1_000,
                "src": src,
                "dst": dst,
                "latency_us": server_us if client_us is None else client_us,
            }
        )
        for ts_us, src, dst, server_us, client_us in rows
    ]
    path = folder / f"{parquet.stem}.jsonl.zst"
    path.write_bytes(bytes(cramjam.zstd.compress("\n".join(lines).encode())))
    times = table["ts_us"].to_pylist()
    return Input(path, "canonical", (max(times) - min(times)) // 1_000)


def write_connections(rows: list[dict[str, Any]], path: Path) -> Input:
    """Write connections as Zeek's tab-separated log with its header, gzip, ordered by their end."""
    names = list(rows[0])
    rows = sorted(rows, key=lambda row: row["ts"] + (row["duration"] or 0.0))
    header = ["#separator \\x09", "#set_separator\t,", "#empty_field\t(empty)", "#unset_field\t-", "#path\tconn"]
    header.append("\t".join(["#fields", *names]))
    lines = ["\t".join(_cell(row[name]) for name in names) for row in rows]
    path.write_bytes(gzip.compress("\n".join([*header, *lines, ""]).encode(), compresslevel=1))
    return Input(path, "zeek-conn", int((rows[-1]["ts"] - rows[0]["ts"]) * 1_000))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def backtest(given: Input) -> tuple[list[dict[str, Any]], str, float]:
    """Run the command; return findings, what it said at the end, and seconds.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "deploy.cli", "backtest", str(given.path), "--format", given.format, "--json"]
    if given.format == "canonical":
        command += ["--tenant", "default"]
    if given.inventory is not None:
        command += ["--inventory", str(given.inventory)]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr, time.perf_counter() - began


def by_hour(findings: Iterable[dict[str, Any]]) -> dict[int, Counter[str]]:
    """Return how many findings of each kind there are by hour, in hours since the epoch."""
    found: dict[int, Counter[str]] = {}
    for finding in findings:
        found.setdefault(finding["time_ms"] // HOUR_MS, Counter())[finding["kind"]] += 1
    return dict(sorted(found.items()))


def ranked(findings: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return findings by risk, the highest first; of equal ones the earliest."""
    return sorted(findings, key=lambda finding: (-finding["risk_score"], finding["time_ms"], finding["finding_id"]))


def concerns(finding: dict[str, Any], client: str, server: str) -> bool:
    """Say whether a finding is about a pair: its subject, or one of the edges it lists."""
    pairs = [(finding["src"], finding["dst"]), *((edge["src"], edge["dst"]) for edge in finding["edges"])]
    return (client, server) in pairs


def most_in_a_day(findings: Iterable[dict[str, Any]]) -> int:
    """Return the largest number of findings within 24 hours."""
    times = sorted(finding["time_ms"] for finding in findings)
    most = first = 0
    for last, time_ms in enumerate(times):
        while times[first] <= time_ms - 24 * HOUR_MS:
            first += 1
        most = max(most, last - first + 1)
    return most


def verdicts_by_day(findings: Iterable[dict[str, Any]]) -> dict[int, Counter[str]]:
    """Return why findings are alerts or none, by day since the epoch."""
    reasons: dict[int, Counter[str]] = {}
    for finding in findings:
        reasons.setdefault(finding["time_ms"] // (24 * HOUR_MS), Counter())[finding["verdict"]["reason"]] += 1
    return dict(sorted(reasons.items()))


def report(given: Input, findings: list[dict[str, Any]], said: str, took_s: float) -> None:
    """Print what a run found."""
    hours = max(given.span_ms / HOUR_MS, 1e-9)
    names = "" if given.inventory is None else ", with an inventory"
    print(f"\n== {given.path.name}: {hours:.1f} h, as {given.format}{names}, {took_s:.1f} s")
    print("".join(f"   {line}\n" for line in said.strip().splitlines()), end="")
    kinds = Counter(finding["kind"] for finding in findings)
    for kind, count in kinds.most_common():
        print(f"   {kind:<20} {count:>6,}  {count / hours:8.2f} an hour")
    alerts = sum(finding["is_alert"] for finding in findings)
    print(f"   {'all':<20} {len(findings):>6,}  {len(findings) / hours:8.2f} an hour; {alerts:,} of them alerts")
    print(f"   most within 24 hours: {most_in_a_day(findings):,}")
    for day, reasons in verdicts_by_day(findings).items():
        listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        print(f"   {datetime.fromtimestamp(day * 86_400, UTC):%m-%d}: {listed}")
    for hour, counts in by_hour(findings).items():
        began = datetime.fromtimestamp(hour * 3_600, UTC)
        listed = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
        print(f"   {began:%m-%d %H}h {counts.total():>6,}  {listed}")
    print(f"   the {SHOWN} highest:")
    for number, finding in enumerate(ranked(findings)[:SHOWN], start=1):
        print(f"   {number:>4} {_line(finding)}")


def _line(finding: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(finding["time_ms"] / 1_000, UTC)
    return (
        f"{when:%m-%d %H:%M:%S} risk {finding['risk_score']:>3} {finding['kind']:<18} "
        f"{finding['src']} -> {finding['dst']}:{finding['port']}  {finding['title']}"
    )


def report_pair(findings: list[dict[str, Any]]) -> bool:
    """Print the findings about the known bad pair; return whether there are any."""
    ordered = ranked(findings)
    about = [
        (rank, finding)
        for rank, finding in enumerate(ordered, start=1)
        if any(concerns(finding, *pair) for pair in KNOWN_BAD)
    ]
    print(f"   known bad pair: {len(about)} findings of {len(ordered):,}")
    for rank, finding in about[:SHOWN]:
        print(f"   {rank:>4} {_line(finding)}{'  (alert)' if finding['is_alert'] else ''}")
    most = most_in_a_day(findings)
    print(f"   goal of at most {GOAL_A_DAY} findings a day: {'met' if most <= GOAL_A_DAY else 'not met'} ({most:,})")
    return bool(about)


def report_faults(stem: str, findings: list[dict[str, Any]], cases: list[dict[str, Any]], times_s: set[int]) -> None:
    """Print which findings fall on a fault that was injected, and how many would by chance.

    Attributes:
        stem: name of the file, which begins with the cases' system. times_s: begins of the minutes that have calls.
    """
    faults = [case for case in cases if stem.startswith(case["system"]) and stem.endswith(case["day"])]
    if not faults:
        return

    def on_faults(start_s: float) -> list[dict[str, Any]]:
        return [c for c in faults if c["inject_ts"] - 60 < start_s < c["inject_ts"] + c["duration_s"]]

    hits = [on_faults(finding["window_start_ms"] / 1_000) for finding in findings]
    named = [
        any(case["root_cause"] in (finding["src"], finding["dst"]) for case in on)
        for finding, on in zip(findings, hits, strict=True)
    ]
    seen = {case["case"] for on, is_named in zip(hits, named, strict=True) if is_named for case in on}
    covered = sum(bool(on_faults(start)) for start in times_s)
    print(
        f"   {sum(map(bool, hits))} of {len(findings)} findings in windows with a fault ({covered} of {len(times_s)} "
        f"windows have one); {sum(named)} name its service; so {len(seen)} of {len(faults)} faults are found"
    )
    for finding, on in zip(findings, hits, strict=True):
        print(f"        {_line(finding)}  on: {', '.join(c['fault'] + ' at ' + c['root_cause'] for c in on) or 'none'}")


def report_attacks(attacks: Iterable[Attack], findings: list[dict[str, Any]]) -> None:
    """Print which attacks are found, by what."""
    for attack in attacks:
        kinds = Counter(finding["kind"] for finding in attack.findings(findings))
        told = ", ".join(f"{kind} {count}" if count > 1 else kind for kind, count in kinds.items()) or "not found"
        print(f"   {attack.what:<58} {told}")


def _sensor_inputs(parquet: Path, folder: Path, is_injected: bool) -> list[tuple[Input, list[Attack]]]:
    """Write a sensor's connections: as they are, with an inventory, and with made attacks if these are wanted."""
    rows = pq.read_table(parquet).to_pylist()
    rules = folder / "inventory.yaml"
    rules.write_text(f"addresses: [{{cidr: {SENSOR_ADDRESS}, name: {SENSOR}, inside: true}}]\n", encoding="utf-8")
    plain = write_connections(rows, folder / f"{parquet.stem}.log.gz")
    inputs: list[tuple[Input, list[Attack]]] = [(plain, []), (replace(plain, inventory=rules), [])]
    if is_injected:
        attacks = attacks_on(rows)
        made = [row for attack in attacks for row in attack.rows]
        mixed = write_connections([*rows, *made], folder / f"{parquet.stem}.injected.log.gz")
        inputs.append((replace(mixed, inventory=rules), attacks))
    return inputs


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, run and print; return 1 if the known bad pair is not among the findings."""
    parser = argparse.ArgumentParser(prog="drift bench real-backtests", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--injected", action="store_true", help="Also with made attacks between the sensor's connections."
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="Keep each run's findings there, as JSON lines.")
    options = parser.parse_args(arguments)
    cases_file = options.folder / "nezha_cases.json"
    cases = json.loads(cases_file.read_text()) if cases_file.exists() else []
    calls = sorted(options.folder.glob("nezha_*_calls_*.parquet"))
    sensors = sorted(options.folder.glob("zeek_conn_rita_*.parquet"))
    if not calls and not sensors:
        parser.error(f"{options.folder} holds neither nezha_*_calls_*.parquet nor zeek_conn_rita_*.parquet")
    missed = 0
    with tempfile.TemporaryDirectory(prefix="drift-real-") as name:
        for parquet in calls:
            given = write_calls(parquet, Path(name))
            findings, said, took_s = backtest(given)
            report(given, findings, said, took_s)
            minutes = {us // 60_000_000 * 60 for us in pq.read_table(parquet, columns=["ts_us"])["ts_us"].to_pylist()}
            report_faults(parquet.stem.replace("_calls_", "_"), findings, cases, minutes)
            _keep(options.keep, given, findings)
        for parquet in sensors:
            for given, attacks in _sensor_inputs(parquet, Path(name), options.injected):
                findings, said, took_s = backtest(given)
                report(given, findings, said, took_s)
                missed += not report_pair(findings)
                report_attacks(attacks, findings)
                _keep(options.keep, given, findings)
    return int(missed > 0)


def _keep(folder: Path | None, given: Input, findings: list[dict[str, Any]]) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        named = ".named" if given.inventory is not None else ""
        lines = "".join(json.dumps(finding) + "\n" for finding in findings)
        (folder / f"{given.path.name}{named}.findings.jsonl").write_text(lines)


if __name__ == "__main__":
    sys.exit(main())
