"""Shows drift events as they are raised, as any consumer of `drift-events` would see them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from aiokafka import TopicPartition
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from models.explain.wording import name_of
from schemas.drift import Activity, DriftEvent, Severity
from schemas.ocsf import decode_event
from schemas.settings import Settings
from streams.kafka_clients import make_consumer

_STYLES = {
    Severity.INFORMATIONAL: "dim",
    Severity.LOW: "cyan",
    Severity.MEDIUM: "yellow",
    Severity.HIGH: "red",
    Severity.CRITICAL: "bold white on red",
}


def line_of(event: DriftEvent) -> Text:
    """Return one line: when (event time), how bad, what, where; then observed against expected."""
    when = datetime.fromtimestamp(event.time_ms / 1000, UTC).strftime("%H:%M:%S")
    severity = event.severity.name.lower()
    text = Text(f"{when}  ")
    text.append(f"{severity:<13}", style=_STYLES[event.severity])
    text.append(f" {event.activity.name.lower():<6} {event.kind.value:<20} ")
    subject = name_of(event.src) + (f" -> {name_of(event.dst)}" if event.dst else "")
    text.append(subject, style="bold")
    if event.activity is Activity.CLOSE:
        text.append(f"  ({event.close_reason})", style="dim")
    else:
        text.append(f"\n          {event.message}", style="dim")
    return text


async def follow_events(settings: Settings, show: Callable[[DriftEvent], None], ready: asyncio.Event) -> None:
    """Call ``show`` for every event published once ``ready`` is set, until cancelled."""
    topic = settings.topics.name("drift_events")
    consumer = make_consumer(settings.kafka)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(settings.topics.partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_end(*partitions)
        for partition in partitions:
            await consumer.position(partition)  # the end is looked up lazily: what comes before that would be missed
        ready.set()
        seen: set[str] = set()
        while True:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    event = decode_event(record.value)
                    if event.event_id not in seen:
                        seen.add(event.event_id)
                        show(event)
            await asyncio.sleep(0)
    finally:
        await consumer.stop()


@contextmanager
def progress_bar(console: Console, title: str, *, is_off: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a bar, on a terminal alone; the yielded function takes (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    hidden = is_off or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
