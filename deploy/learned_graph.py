"""The learned service graph of a tenant, from ClickHouse or from a file."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import msgspec

from deploy.sql_console import FILE, ask_running, query_text
from schemas.clickhouse_dsn import database_of, is_embedded
from schemas.errors import ConfigurationError
from schemas.prediction import BaselineEdge
from schemas.settings import Settings
from streams.clickhouse import connect

# One edge may be seen in several lanes: the calls are those of the lane that sees most, never their sum.
_LEARNED = """
SELECT src, dst, port, protocol, max(calls_of_lane) AS calls
FROM (
    SELECT lane, src, dst, port, protocol, sum(calls) AS calls_of_lane
    FROM {database}.edges_1m FINAL
    WHERE tenant = {tenant}
        AND (lane, generation) IN (
            SELECT lane, max(generation) FROM {database}.windows WHERE tenant = {tenant} GROUP BY lane)
        AND window_start >= (
            SELECT max(window_start) FROM {database}.windows WHERE tenant = {tenant}) - INTERVAL {days} DAY
    GROUP BY lane, src, dst, port, protocol
)
GROUP BY src, dst, port, protocol ORDER BY src, dst, port, protocol
"""


def learned_edges(settings: Settings, data: Path, tenant: str, days: int) -> list[BaselineEdge]:
    """Return the edges that a tenant's closed windows of the last days hold.

    Raises:
        ConfigurationError: no store answers, or it holds nothing of this tenant.
    """
    sql = _LEARNED.format(database=database_of(settings.clickhouse), tenant=_quoted(tenant), days=days)
    if is_embedded(settings.clickhouse) or (data / FILE).exists():
        text = asyncio.run(ask_running(data, sql, "JSONEachRow"))
    else:
        text = query_text(connect(settings.clickhouse), sql, "JSONEachRow")
    edges = read_edges(text.splitlines(), "ClickHouse")
    if not edges:
        raise ConfigurationError(f"nothing is stored of tenant {tenant!r} for the last {days} days: check its name")
    return edges


def read_edges(lines: Iterable[str], where: str) -> list[BaselineEdge]:
    """Read edges, one JSON object a line: ``src``, ``dst`` and, where known, ``port``, ``protocol``, ``calls``.

    Raises:
        ConfigurationError: a line is none; the text names it.
    """
    edges = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            edges.append(msgspec.convert(json.loads(line), BaselineEdge, strict=False))
        except (ValueError, msgspec.ValidationError) as error:
            raise ConfigurationError(
                f"{where}, line {number} is no edge ({error}); one JSON object a line is read: "
                '{"src": "shop/web", "dst": "shop/cart", "port": 8080, "protocol": 6, "calls": 12}'
            ) from error
    return edges


def _quoted(text: str) -> str:
    """Return a string literal of ClickHouse: what answers for a running instance takes text alone, no parameters."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
