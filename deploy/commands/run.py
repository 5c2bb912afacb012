"""`drift run`: everything on this machine, fed with a real sample, showing drift as it is raised."""

import asyncio
import json
import shlex
import signal
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
from rich.console import Console
from rich.text import Text

from api.security.access import FIRST_ADMIN
from api.security.passwords import one_time_password
from deploy.access_file import NAME as ACCOUNTS_FILE
from deploy.embedded import Embedded
from deploy.live_view import follow_events, line_of, progress_bar
from deploy.serving import Grace, stop_once
from models.explain.wording import name_of
from models.graph.clock import END_OF_TIME_MS
from schemas.drift import Activity, DriftEvent, Severity
from schemas.errors import DriftError
from schemas.settings import load_settings
from streams.clickhouse import connect
from streams.clock import SystemClock
from streams.graph_scores.status import banner
from streams.replay import ReplayLane, push_file
from streams.sinks.rollup import rollup

SAMPLE = Path(__file__).parent.parent / "sample" / "online-boutique.jsonl.gz"
SAMPLE_TENANT = "online-boutique"
SAMPLE_LANE = "replay:sample"
SAMPLE_WINDOW_MS = 10_000
SAMPLE_LATENESS_MS = 5_000
SAMPLE_LEARNING_WINDOWS = 12
FAULTS = SAMPLE.with_name("faults.json")
SIEM_CONSUMER = Path(__file__).parent.parent / "examples" / "siem_consumer.py"
INCIDENT_MS = 60_000
INCIDENTS_SHOWN = 8
_SETTLE_TIMEOUT_S = 120.0
_OTHERS_GRACE_MS = 15_000
"""For API, SQL console and broker, beside the worker's grace."""
DRIFT = str(Path(sys.argv[0]))


@dataclass(slots=True)
class Seen:
    """Events shown so far."""

    events: list[DriftEvent] = field(default_factory=list)

    def by_kind(self) -> Counter[str]:
        """Count findings by kind."""
        return Counter(event.kind.value for event in self.events if event.activity is Activity.CREATE)


@click.command(epilog="Example: drift run --once --data /tmp/drift-demo")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("drift-data"),
    show_default=True,
    help="Folder for everything that is kept.",
)
@click.option(
    "--api-port", default=8080, show_default=True, type=click.IntRange(0, 65_535), help="0 takes a free port."
)
@click.option(
    "--kafka-port", default=9092, show_default=True, type=click.IntRange(0, 65_535), help="0 takes a free port."
)
@click.option("--once", is_flag=True, help="Exit after the sample's replay.")
@click.option("--no-sample", is_flag=True, help="Start empty; push your own flows to the topic `flows`.")
@click.option(
    "--speed", default=0.0, type=click.FloatRange(min=0), help="Replay at this multiple of real time; 0: at once."
)
@click.pass_obj
def run(
    config: Path | None, data: Path, api_port: int, kafka_port: int, once: bool, no_sample: bool, speed: float
) -> int:
    """Run broker, ClickHouse, worker and API in one process on loopback, and replay a real sample."""
    console = Console()
    embedded = Embedded(load_settings(config), data, kafka_port=kafka_port, api_port=api_port)
    return asyncio.run(_run(embedded, console, once, not no_sample, speed))


async def _run(embedded: Embedded, console: Console, once: bool, with_sample: bool, speed: float) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop_once, loop, stop)
    try:
        with console.status("starting broker, ClickHouse, worker and API ..."):
            await embedded.start()
        settings = embedded.settings
        console.print(f"Kafka     {settings.kafka.bootstrap}", highlight=False)
        console.print(f"API       {_base_url(embedded)}/openapi.json", highlight=False)
        console.print(f"Graph model: {banner(settings.gnn.models_dir)}", highlight=False, markup=False, soft_wrap=True)
        _show_account(embedded, console)
        work = asyncio.ensure_future(_replay_and_report(embedded, console, speed) if with_sample else _idle(console))
        stopping = asyncio.ensure_future(stop.wait())
        crashed = asyncio.ensure_future(embedded.worker.run_until(stop))
        await asyncio.wait({work, stopping, crashed}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            if not once:
                console.print("\nRunning. Push flows to the topic `flows`; Ctrl-C ends.", highlight=False)
                await asyncio.wait({stopping, crashed}, return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        if crashed.done():
            crashed.result()
        stop.set()
        return 0
    finally:
        Grace(embedded.grace_ms + _OTHERS_GRACE_MS).begin()
        with console.status("stopping ..."):
            await embedded.stop()


def _show_account(embedded: Embedded, console: Console) -> None:
    """Say who may log in; the one-time password stands on the terminal alone, and in no log."""
    first = embedded.first_admin
    if first is None:
        tenant = embedded.settings.api.auth.admin_tenant
        said = f"Account   of tenant {tenant}, with the password chosen before (lost: stop, delete {ACCOUNTS_FILE})"
    else:
        said = f"Account   {first.account} of tenant {first.tenant}, one-time password {first.password}"
    console.print(said, highlight=False, markup=False, soft_wrap=True)


async def _idle(console: Console) -> None:
    console.print("No sample: nothing to replay.", highlight=False)


async def _replay_and_report(embedded: Embedded, console: Console, speed: float) -> None:
    seen = Seen()

    def show(event: DriftEvent) -> None:
        seen.events.append(event)
        console.print(line_of(event), soft_wrap=True)

    before = _published(embedded)  # what the start itself raised, say windows that the last stop left open
    ready = asyncio.Event()
    following = asyncio.ensure_future(follow_events(embedded.settings, show, ready))
    waiting = asyncio.ensure_future(ready.wait())
    await asyncio.wait({waiting, following}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if following.done():
        following.result()
    generation = SystemClock().now_ms()
    lane = ReplayLane(
        name=SAMPLE_LANE,
        window_ms=SAMPLE_WINDOW_MS,
        lateness_ms=SAMPLE_LATENESS_MS,
        detection={"learning_windows": SAMPLE_LEARNING_WINDOWS},
        generation=generation,
    )
    console.print("Replaying 20 minutes of a real web shop with five injected faults (deploy/sample/README.md).\n")
    with progress_bar(console, "replaying") as progress:
        flows = await push_file(
            embedded.settings, SAMPLE, "canonical", lane, clock=SystemClock(), speed=speed or None, progress=progress
        )
    await _until(lambda: _all_closed(embedded, generation), "its windows are not closed")
    await _until(lambda: _all_stored(embedded), "ClickHouse has not got all of it")
    await _until(lambda: len(seen.events) >= _published(embedded) - before, "its events cannot be read back")
    following.cancel()
    await _report(embedded, console, seen, flows)


async def _until(condition: Callable[[], bool], otherwise: str) -> None:
    try:
        async with asyncio.timeout(_SETTLE_TIMEOUT_S):
            while not condition():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise DriftError(
            f"the sample was pushed, and {_SETTLE_TIMEOUT_S:.0f} s later {otherwise}; "
            "run again with --log-level INFO to see why"
        ) from None


def _all_closed(embedded: Embedded, generation: int) -> bool:
    """Every partition of `tenant-log` has seen the end of this replay; the lane may be there from an earlier one."""
    graph = embedded.worker.graph
    assert graph is not None
    done = [p for p in graph.partitions.values() if p.performed_offset == p.machine.offset]
    lanes = [p.machine.lanes.get(SAMPLE_LANE) for p in done]
    return len(lanes) == embedded.settings.topics.partitions and all(
        lane is not None and lane.config.generation == generation and (lane.clock.watermark_ms or 0) >= END_OF_TIME_MS
        for lane in lanes
    )


def _total(embedded: Embedded, name: str, **labels: str) -> int:
    registry = embedded.worker.metrics.registry
    return int(
        sum(
            sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
        )
    )


def _published(embedded: Embedded) -> int:
    return _total(embedded, "drift_events_total")


def _all_stored(embedded: Embedded) -> bool:
    """ClickHouse has every event and the marker of every closed window."""
    windows = _total(embedded, "drift_windows_closed_total")
    return (
        _total(embedded, "drift_clickhouse_rows_total", table="drift_events") >= _published(embedded)
        and _total(embedded, "drift_clickhouse_rows_total", table="windows") >= windows
    )


async def _report(embedded: Embedded, console: Console, seen: Seen, flows: int) -> None:
    client = await asyncio.to_thread(connect, embedded.settings.clickhouse)
    database = embedded.settings.clickhouse.database
    parameters = {"tenant": SAMPLE_TENANT, "lane": SAMPLE_LANE}
    windows, edges, folded = client.query(  # the database is a checked identifier
        "SELECT uniqExact(window_start), uniqExact(src, dst, port, protocol), sum(flows) "
        f"FROM {database}.edges_1m FINAL WHERE tenant = {{tenant:String}} AND lane = {{lane:String}} "
        f"AND generation = (SELECT max(generation) FROM {database}.edges_1m "
        "WHERE tenant = {tenant:String} AND lane = {lane:String})",
        parameters=parameters,
    ).result_rows[0]
    await asyncio.to_thread(rollup, client, database)  # the worker's own comes too late for whoever tries things now
    await asyncio.to_thread(client.close)
    dead = _total(embedded, "drift_dead_letters_total")
    console.print("\nThe replay is through.", style="bold")
    console.print(
        f"  {flows:,} flows pushed, {int(folded):,} counted, {int(windows)} windows, {int(edges)} edges, "
        f"{len(seen.events)} drift events, {dead} dead letters",
        highlight=False,
    )
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.by_kind().items()))
    console.print(f"  findings: {kinds or 'none'}", highlight=False)
    incidents = _incidents(seen.events)
    key = embedded.key_for_myself(SAMPLE_TENANT)
    for incident in incidents:
        await _report_causes(embedded, console, incident, key)
    _report_next_steps(embedded, console, incidents)


@dataclass(frozen=True, slots=True)
class Incident:
    """Findings of one incident, as the events say."""

    incident_id: str
    opened: tuple[DriftEvent, ...]

    @property
    def worst(self) -> DriftEvent:
        """The finding with the highest risk."""
        return max(self.opened, key=lambda event: (event.risk_score, event.confidence, event.event_id))

    @property
    def since_ms(self) -> int:
        """Start of the first window concerned."""
        return min(event.window_start_ms for event in self.opened)

    @property
    def until_ms(self) -> int:
        """A minute of event time after it began: long enough to see who is hurt."""
        return self.since_ms + INCIDENT_MS


def _incidents(events: list[DriftEvent]) -> list[Incident]:
    """Group what was opened, settled numbers before early ones; the riskiest incidents first."""
    settled = {e.finding_id: e for e in events if e.activity is not Activity.CLOSE and not e.is_early}
    grouped: dict[str, list[DriftEvent]] = {}
    for event in settled.values():
        grouped.setdefault(event.incident_id, []).append(event)
    incidents = [Incident(key, tuple(found)) for key, found in grouped.items()]
    incidents = [incident for incident in incidents if incident.worst.severity >= Severity.HIGH]
    return sorted(incidents, key=lambda incident: (-incident.worst.risk_score, incident.incident_id))[:INCIDENTS_SHOWN]


def _injected_near(incident: Incident) -> str:
    """What was injected at that time, for people to compare; detection never reads it."""
    faults = json.loads(FAULTS.read_text())["faults"]
    near = [f for f in faults if f["start_ms"] < incident.until_ms and incident.since_ms < f["end_ms"]]
    return ", ".join(f"{fault['fault']} in {fault['root_cause']}" for fault in near)


def _base_url(embedded: Embedded) -> str:
    host = embedded.settings.api.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{embedded.settings.api.port}"


def _get(url: str, key: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"X-API-Key": key}), timeout=30) as response:
        return json.load(response)


async def _report_causes(embedded: Embedded, console: Console, incident: Incident, key: str) -> None:
    worst = incident.worst
    query = urlencode({"lane": worst.lane, "since": incident.since_ms, "until": incident.until_ms})
    report = await asyncio.to_thread(_get, f"{_base_url(embedded)}/v1/root-cause?{query}", key)
    when = datetime.fromtimestamp(incident.since_ms / 1000, UTC).strftime("%H:%M:%S")
    title = Text(f"\n  incident at {when}: ")
    title.append(f"{worst.title} ({len(incident.opened)} findings)", style="bold")
    console.print(title, soft_wrap=True)
    for cause in report["causes"][:3]:
        line = Text(f"    {cause['rank']}. ")
        line.append(name_of(cause["service"]), style="bold")
        line.append(f"  {cause['score']:.2f}")
        if cause["evidence"]:
            line.append(f"  {cause['evidence'][0]['sentence']}", style="dim")
        console.print(line, soft_wrap=True)
    injected = _injected_near(incident)
    if injected:
        console.print(f"    what was injected then: {injected}", style="green", highlight=False)


def _login_line(embedded: Embedded) -> str:
    """Return a shell line that logs in; the first time it also replaces the one-time password, as it must be."""
    first = embedded.first_admin
    body = {"tenant": embedded.settings.api.auth.admin_tenant, "account": FIRST_ADMIN, "password": "YOUR PASSWORD"}
    if first is not None:
        # Made up anew each time: a phrase printed for everybody would be everybody's password. Or choose your own.
        body |= {"password": first.password, "new_password": one_time_password()}
    sent = f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    return (
        f'TOKEN=$(curl -s {_base_url(embedded)}/v1/sessions {sent} | sed \'s/.*"access_token":"\\([^"]*\\)".*/\\1/\')'
    )


def _report_next_steps(embedded: Embedded, console: Console, incidents: list[Incident]) -> None:
    settings = embedded.settings
    base = f"{_base_url(embedded)}/v1"
    path = f"/root-cause?event_id={incidents[0].worst.event_id}" if incidents else "/windows"
    lines = (
        ("log in over HTTP", _login_line(embedded)),
        ("root causes over HTTP", f"curl -s -H \"Authorization: Bearer $TOKEN\" '{base}{path}'"),
        (
            "SQL over what is stored",
            f'{DRIFT} sql --data {embedded.folder} "SELECT kind, src, dst, max(risk_score) AS risk '
            f'FROM {settings.clickhouse.database}.drift_events FINAL GROUP BY ALL ORDER BY risk DESC LIMIT 5"',
        ),
        (
            "the topic, as a SIEM reads it",
            f"{shlex.quote(sys.executable)} {shlex.quote(str(SIEM_CONSUMER))} {settings.kafka.bootstrap} "
            f"{settings.topics.name('drift_events')} --timeout 15",
        ),
    )
    console.print("\nThings to try next:", style="bold")
    for title, command in lines:
        console.print(f"  {title}:", style="dim")
        console.print(f"    {command}", markup=False, highlight=False, soft_wrap=True)
