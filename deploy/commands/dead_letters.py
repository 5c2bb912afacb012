"""`drift dead-letters`: lists what could not be used, shows one with its bytes, and replays them."""

import asyncio
import base64
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from deploy.commands.options import Duration
from deploy.live_view import progress_bar
from schemas.dead_letter import DeadLetter, Reason
from schemas.errors import ConfigurationError
from schemas.settings import Settings, load_settings
from streams.clock import SystemClock
from streams.dead_letter_replay import Replayed, refusal_of, replay_letters
from streams.dead_letter_topic import Found, Selection, TenantGuess, find_letters, read_letter
from streams.dead_letters import needs_source, unreplayable
from streams.kafka_clients import check_connection

SHOWN = 50
SHOWN_BYTES = 1_024
SHOWN_REFUSALS = 20
_SOURCE = re.compile(r"[A-Za-z0-9._-]{1,249}:\d{1,9}:\d{1,18}:\d{1,9}")
_TIMESTAMP_TYPES = {0: "producer's clock", 1: "broker's clock"}


class Source(click.ParamType):
    """A source coordinate, `topic:partition:offset:index`."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the coordinate as it is."""
        if not _SOURCE.fullmatch(value):
            self.fail(f"{value!r} is no coordinate: write topic:partition:offset:index, as `list` shows it", param, ctx)
        return str(value)


def _selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which dead letters are meant."""
    reasons = click.Choice([reason.value for reason in Reason])
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--since", type=Duration(), help="Written since then, say 30m, 12h or 2d ago."),
        click.option("--tenant", help="Of this tenant, as far as the topic's rule and the bytes kept tell it."),
        click.option("--topic", "topics", multiple=True, help="From this source topic; may be repeated."),
        click.option("--reason", "reasons", multiple=True, type=reasons, help="With this reason; may be repeated."),
    ):
        command = option(command)
    return command


def _selection(
    reasons: Sequence[str],
    topics: Sequence[str],
    tenant: str | None,
    since: int | None,
    sources: Sequence[str] = (),
) -> Selection:
    return Selection(
        reasons=frozenset(map(Reason, reasons)),
        topics=frozenset(topics),
        sources=frozenset(sources),
        tenant=tenant,
        since_ms=None if since is None else SystemClock().now_ms() - since,
    )


@click.group("dead-letters", epilog="Example: drift dead-letters list --reason malformed --since 1h")
def dead_letters() -> None:
    """Records that could not be used: list them, look into one, replay them once the cause is mended."""


# -- list --------------------------------------------------------------------------------------------------------------


@dead_letters.command("list", epilog="Example: drift dead-letters list --topic flows --reason malformed --since 1h")
@_selecting
@click.option("--limit", type=click.IntRange(min=1), default=SHOWN, show_default=True, help="Show so many, the latest.")
@click.pass_obj
def list_letters(
    config: Path | None,
    reasons: tuple[str, ...],
    topics: tuple[str, ...],
    tenant: str | None,
    since: int | None,
    as_json: bool,
    limit: int,
) -> None:
    """List dead letters, each once, the latest at the bottom. Those that were replayed stay until retention."""
    settings = load_settings(config)
    found = asyncio.run(_find(settings, _selection(reasons, topics, tenant, since)))
    by_reason = Counter(one.letter.reason.value for one in found)
    shown = found[-limit:]
    if as_json:
        described = [_described(one, settings) for one in shown]
        _print_json({"total": len(found), "by_reason": dict(sorted(by_reason.items())), "dead_letters": described})
        return
    rows = [("WRITTEN (UTC)", "SOURCE", "REASON", "TIMES", "BYTES", "TENANT", "DETAIL")]
    rows += [
        (
            _time(one.written_ms),
            one.letter.key,
            one.letter.reason.value,
            str(one.times),
            str(one.letter.length or one.size_bytes),
            _printable(one.tenant or "-"),
            _printable(one.letter.detail),
        )
        for one in shown
    ]
    if shown:
        _print_table(rows)
    counts = ", ".join(f"{reason} {count}" for reason, count in by_reason.most_common())
    left_out = f"; the latest {limit} are shown (--limit)" if len(found) > limit else ""
    click.echo(f"{_count(len(found))}{': ' if counts else ''}{counts}{left_out}")


async def _find(settings: Settings, selection: Selection) -> list[Found]:
    await check_connection(settings.kafka)
    with progress_bar(Console(stderr=True), "reading dead letters") as progress:
        return await find_letters(settings, selection, progress)


def _described(found: Found, settings: Settings) -> dict[str, Any]:
    refusal = refusal_of(found, settings)
    return {
        **_facts(found.letter),
        "written_ms": found.written_ms,
        "times": found.times,
        "tenant": found.tenant,
        "kept_bytes": found.size_bytes,
        "replay": "refused" if refusal else "source" if found.needs else "kept",
        "why": refusal or found.needs,
    }


def _facts(letter: DeadLetter) -> dict[str, Any]:
    return {
        "source": letter.key,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "index": letter.index,
        "reason": letter.reason.value,
        "detail": letter.detail,
        "format": letter.format,
        "bytes": letter.length or None,
        "timestamp_ms": None if letter.timestamp_ms < 0 else letter.timestamp_ms,
        "incarnation": letter.incarnation or None,
    }


# -- show --------------------------------------------------------------------------------------------------------------


@dead_letters.command("show", epilog="Example: drift dead-letters show flows:0:1042:3")
@click.argument("source", type=Source())
@click.option("--hex", "as_hex", is_flag=True, help="Show the bytes in hex; without it, where they are no text.")
@click.option(
    "--bytes", "limit", type=click.IntRange(min=0), default=SHOWN_BYTES, show_default=True, help="Of them; 0 is all."
)
@click.option("--raw", is_flag=True, help="Write the bytes kept to standard output, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; the bytes in base64.")
@click.pass_obj
def show(config: Path | None, source: str, as_hex: bool, limit: int, raw: bool, as_json: bool) -> None:
    """Show the dead letter of the record at SOURCE: all that is known, and its bytes."""
    settings = load_settings(config)

    async def find() -> tuple[DeadLetter, int, int]:
        await check_connection(settings.kafka)
        found = await read_letter(settings, source)
        if found is None:
            raise _no_such(settings, source)
        return found

    letter, written_ms, times = asyncio.run(find())
    if raw:
        sys.stdout.buffer.write(letter.payload)
        return
    tenant = TenantGuess(settings).of(letter)
    if as_json:
        _print_json(
            {
                **_facts(letter),
                "bytes": letter.length or len(letter.payload),
                "sha256": letter.sha256 or None,
                "written_ms": written_ms,
                "times": times,
                "tenant": tenant,
                "is_record_alone": letter.is_alone,
                "key_base64": _base64(letter.message_key),
                "headers": [[name, _base64(data)] for name, data in letter.message_headers],
                "headers_left_out": letter.headers_left_out,
                "payload_base64": _base64(letter.payload),
            }
        )
        return
    for name, text in _lines(letter, written_ms, times, tenant):
        click.echo(f"{name:<10}{text}")
    kept = letter.payload if limit == 0 else letter.payload[:limit]
    if kept:
        click.echo()
        click.echo(
            _hex(kept) if as_hex or not _is_text(kept) else _printable(kept.decode(errors="replace"), lines=True)
        )
    if len(kept) < len(letter.payload):
        click.echo(f"... {len(letter.payload) - len(kept)} bytes more (--bytes 0)")


def _lines(letter: DeadLetter, written_ms: int, times: int, tenant: str | None) -> list[tuple[str, str]]:
    """Return what is known of a dead letter, as (name, text)."""
    never, needs = unreplayable(letter), needs_source(letter)
    content = "one record of its message" if letter.is_alone else "the whole message"
    size = f"{letter.length or len(letter.payload)} bytes"
    if needs and not letter.payload:
        content, size = "one record of its message", "not kept here"
    if letter.length:
        size += f", of which the first {len(letter.payload)} were kept; SHA-256 {letter.sha256}"
    lines = [
        ("source", letter.key + (f"  (incarnation {_printable(letter.incarnation)})" if letter.incarnation else "")),
        ("reason", letter.reason.value),
        ("detail", _printable(letter.detail)),
        ("written", f"{_time(written_ms)} UTC" + (f", {times} times" if times > 1 else "")),
        ("format", _printable(letter.format or "-")),
        ("tenant", _printable(tenant or "not known")),
        ("content", content),
        ("size", size),
    ]
    if letter.timestamp_ms >= 0:
        clock = _TIMESTAMP_TYPES.get(letter.timestamp_type, "unknown clock")
        lines.append(("timestamp", f"{_time(letter.timestamp_ms)} UTC ({clock})"))
    if letter.message_key is not None:
        lines.append(("key", _bytes_text(letter.message_key)))
    lines += [("header", f"{_printable(name)}: {_bytes_text(data)}") for name, data in letter.message_headers]
    if letter.headers_left_out:
        lines.append(("headers", f"{letter.headers_left_out} more were too large to keep"))
    if never is not None:
        lines.append(("replay", f"not possible: {never}"))
    else:
        lines.append(("replay", f"reads its source topic anew: {needs}" if needs else "from the bytes kept here"))
    return lines


# -- replay ------------------------------------------------------------------------------------------------------------


@dead_letters.command("replay", epilog="Example: drift dead-letters replay --topic flows --reason unknown-tenant --yes")
@click.argument("sources", metavar="[SOURCE]...", type=Source(), nargs=-1)
@_selecting
@click.option("--dry-run", is_flag=True, help="Say what would be replayed, and push nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def replay(
    config: Path | None,
    sources: tuple[str, ...],
    reasons: tuple[str, ...],
    topics: tuple[str, ...],
    tenant: str | None,
    since: int | None,
    as_json: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    """Replay dead letters by their topic's rules as they are now: those at SOURCE, or all that are selected.

    Each record counts once, however often it is replayed; what is still bad becomes a dead letter again.
    """
    settings = load_settings(config)
    if as_json and not (yes or dry_run):
        raise ConfigurationError("--json asks nothing: add --yes, or --dry-run")
    found = asyncio.run(_find(settings, _selection(reasons, topics, tenant, since, sources)))
    missing = sorted(set(sources) - {one.letter.key for one in found})
    if missing:
        raise _no_such(settings, missing[0], is_selected=bool(reasons or topics or tenant or since))
    refused = [(one.letter.key, why) for one in found if (why := refusal_of(one, settings)) is not None]
    count = len(found) - len(refused)
    if dry_run or not count:
        _report(Replayed(0, refused), settings, as_json, found=len(found), would=count)
        return 1 if refused and not count and not dry_run else 0
    if not yes:
        by_reason = Counter(one.letter.reason.value for one in found if refusal_of(one, settings) is None)
        click.echo(", ".join(f"{reason} {number}" for reason, number in by_reason.most_common()), err=True)
        click.confirm(f"Replay {_count(count)}?", abort=True, err=True)

    async def push() -> Replayed:
        with progress_bar(Console(stderr=True), "replaying") as progress:
            return await replay_letters(settings, found, progress)

    done = asyncio.run(push())
    _report(done, settings, as_json, found=len(found))
    return 1 if done.refused and not done.pushed else 0


def _report(done: Replayed, settings: Settings, as_json: bool, *, found: int, would: int | None = None) -> None:
    if as_json:
        refused = [{"source": source, "why": why} for source, why in done.refused]
        outcome = {"would_replay": would} if would is not None else {"pushed": done.pushed}
        _print_json({"found": found, **outcome, "refused": refused})
        return
    if would is not None:
        click.echo(f"{_count(would)} of {found} can be replayed")
    else:
        click.echo(
            f"{_count(done.pushed)} of {found} pushed to {settings.topics.name('replay')}: a worker takes each once"
        )
    by_reason: dict[str, list[str]] = {}
    for source, why in done.refused:
        by_reason.setdefault(why, []).append(source)
    for why, mine in list(by_reason.items())[:SHOWN_REFUSALS]:
        others = f" and {len(mine) - 1} more" if len(mine) > 1 else ""
        click.echo(f"not {mine[0]}{others}: {_printable(why)}")
    if len(by_reason) > SHOWN_REFUSALS:
        click.echo(f"not {len(by_reason) - SHOWN_REFUSALS} more, for reasons of their own (--json)")


# -- words -------------------------------------------------------------------------------------------------------------


def _no_such(settings: Settings, source: str, is_selected: bool = False) -> ConfigurationError:
    topic = settings.topics.name("dead_letter")
    chosen = " that the other options select" if is_selected else ""
    return ConfigurationError(f"{topic} holds no dead letter of {source}{chosen}: see `drift dead-letters list`")


def _count(number: int) -> str:
    return f"{number} dead letter{'' if number == 1 else 's'}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _printable(text: str, lines: bool = False) -> str:
    """Escape what a terminal would obey: the text is a stranger's."""
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.end < len(data) - 4:  # not just a character cut in two at the end
            return False
        text = data[: error.start].decode()
    return all(c.isprintable() or c in "\r\n\t" for c in text)


def _bytes_text(data: bytes | None) -> str:
    if data is None:
        return "null"
    return _printable(data.decode(errors="replace")) if _is_text(data) else data.hex(" ")


def _hex(data: bytes) -> str:
    """Return the classic view: offset, sixteen bytes, their characters."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        characters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {row.hex(' '):<47}  {characters}")
    return "\n".join(lines)


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns; the last one is cut at the edge of a terminal, and whole anywhere else."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in rows:
        line = "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        click.echo(line[:edge] if edge else line)
