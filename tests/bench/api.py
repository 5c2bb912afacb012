"""Root cause and blast radius through HTTP, from stored windows of made networks: ``python -m tests.bench.api``.

The networks are trees of calls with shortcuts (seeded): services call later ones, the first is the entry point. In the
last window one service of the middle is slow, and whoever waits for it with it. All in one process, as `drift run` has
it: the server, ClickHouse (chdb) and the client; times include all three. `anew`: the API forgets its answers before
each question, so that all is read and worked out; `repeat`: the same question as before.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from api.app import create_app
from api.kept_answers import KeptAnswers
from deploy.http_server import server_config
from schemas.settings import ApiSettings, ClickHouseSettings, LimitSettings, Settings
from streams.clickhouse import connect
from streams.migrate import migrate
from tests.access import Doors

SEED = 7
START_MS, WINDOW_MS = 1_769_860_800_000, 60_000
SLOW_WINDOWS, CALM_WINDOWS = 1, 5
ADDED_US = 90_000
SIZES = ((50, 200, 200), (1_000, 5_000, 60), (10_000, 100_000, 30))
"""Services, edges, repeats."""
GOALS_MS = {50: 50, 10_000: 500}

Array = np.ndarray[Any, Any]


def network(services: int, edges: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return caller and callee of each edge, ``(E,)`` each, callers before callees: no cycle."""
    dst = np.concatenate([np.arange(1, services), rng.integers(1, services, 4 * edges)])
    src = (rng.random(len(dst)) * dst).astype(np.int64)
    _, first = np.unique(src * services + dst, return_index=True)
    chosen = np.sort(first)[:edges]
    return src[chosen], dst[chosen]


def traffic(
    services: int, src: Array, dst: Array, self_us: Array, slow: int, added_us: int, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Return calls, usual latency and latency while one service is slow, of each edge: ``(E,)`` each.

    Every request that a service gets makes it call once, somewhere, and wait for the answer.
    """
    share = rng.random(len(src)) + 0.1
    share /= np.bincount(src, share, minlength=services)[src]
    arrivals = np.zeros(services)
    arrivals[0] = 1_000.0 * services
    calls = np.zeros(len(src))
    order = np.argsort(src, kind="stable")
    out_of = np.split(order, np.searchsorted(src[order], np.arange(1, services)))
    for one in range(services):
        mine = out_of[one]
        calls[mine] = np.maximum(np.rint(arrivals[one] * share[mine]), 1)
        np.add.at(arrivals, dst[mine], calls[mine])
    usual, now = self_us.astype(np.float64), self_us.astype(np.float64)
    now[slow] += added_us
    for one in range(services - 1, -1, -1):
        mine = out_of[one]
        weight = calls[mine] / max(arrivals[one], 1.0)
        usual[one] += weight @ usual[dst[mine]]
        now[one] += weight @ now[dst[mine]]
    return calls.astype(np.int64), usual[dst], now[dst]


def windows_of(tenant: str, services: int, edges: int) -> Iterator[pa.Table]:
    """Yield the rows of `edges_1m`, a table a window."""
    rng = np.random.default_rng(SEED)
    src, dst = network(services, edges, rng)
    self_us = rng.integers(2_000, 20_000, services)
    calls, usual_us, slow_us = traffic(services, src, dst, self_us, services // 2, ADDED_US, rng)
    names = np.array([f"shop/service-{number:05d}" for number in range(services)])
    for index in range(CALM_WINDOWS + SLOW_WINDOWS):
        expected_us = slow_us if index >= CALM_WINDOWS else usual_us
        p50 = (expected_us * rng.normal(1.0, 0.03, len(src))).astype(np.int64)
        start = START_MS + index * WINDOW_MS
        count = len(src)
        columns: dict[str, Any] = {
            "tenant": [tenant] * count,
            "lane": ["default"] * count,
            "generation": np.zeros(count, np.uint64),
            "window_start": pa.array(np.full(count, start), pa.timestamp("ms", "UTC")),
            "window_end": pa.array(np.full(count, start + WINDOW_MS), pa.timestamp("ms", "UTC")),
            "src": names[src],
            "dst": names[dst],
            "port": np.full(count, 8_080),
            "protocol": np.full(count, 6),
            "flows": calls,
            "calls": calls,
            "errors": np.zeros(count, np.int64),
            "error_flows": calls,
            "latency_calls": calls,
            "latency_sum_us": calls * p50,
            "p50_us": p50,
            "p95_us": 2 * p50,
            "p99_us": 3 * p50,
        }
        yield pa.table(columns)


def store(client: Any, database: str, tenant: str, services: int, edges: int) -> None:
    """Store the windows of a network and that they are closed."""
    for index, table in enumerate(windows_of(tenant, services, edges)):
        client.insert_arrow(f"{database}.edges_1m", table)
        start = START_MS + index * WINDOW_MS
        client.command(
            f"INSERT INTO {database}.windows (tenant, lane, generation, window_start, window_end, edges) VALUES "
            f"('{tenant}', 'default', 0, fromUnixTimestamp64Milli({start}), "
            f"fromUnixTimestamp64Milli({start + WINDOW_MS}), {table.num_rows})"
        )


@asynccontextmanager
async def served(settings: Settings, doors: Doors) -> Any:
    """Serve the API on a port of loopback; yield its address and the application."""
    app = create_app(settings, doors.access)
    config = server_config(app, settings.api, "warning")
    config.port = 0
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", app
    finally:
        server.should_exit = True
        await task


async def measure(client: httpx.AsyncClient, app: FastAPI, path: str, repeats: int) -> dict[str, float]:
    """Return times of the first answer, of answers worked out anew and of repeated ones, in milliseconds."""

    async def ask() -> float:
        began = time.perf_counter()
        answer = await client.get(path)
        took_ms = (time.perf_counter() - began) * 1_000
        answer.raise_for_status()
        found["bytes"] = len(answer.content)
        return took_ms

    found: dict[str, float] = {}
    forget(app)
    found["first_ms"] = round(await ask(), 1)
    anew = []
    for _ in range(repeats):
        forget(app)
        anew.append(await ask())
    repeated = [await ask() for _ in range(repeats)]
    for name, taken in (("anew", anew), ("repeat", repeated)):
        p50, p99 = np.percentile(taken, [50, 99])
        found |= {f"{name}_p50_ms": round(p50, 1), f"{name}_p99_ms": round(p99, 1)}
    return found


def forget(app: FastAPI) -> None:
    """Have the API know no answer."""
    app.state.repository.kept = KeptAnswers()


async def run(sizes: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Measure networks of each size, a tenant each."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="drift-bench-api-") as folder:
        clickhouse = ClickHouseSettings(dsn=SecretStr(f"chdb://{Path(folder).resolve()}/clickhouse"))
        limits = LimitSettings(principal_per_minute=1_000_000, tenant_per_minute=1_000_000)
        settings = Settings(clickhouse=clickhouse, api=ApiSettings(limits=limits))
        writer = connect(clickhouse)
        migrate(writer, clickhouse.database, retention_days=365)
        doors = Doors(settings.api)
        async with served(settings, doors) as (address, app):
            for services, edges, repeats in sizes:
                tenant = f"net-{services}"
                store(writer, clickhouse.database, tenant, services, edges)
                since = START_MS + CALM_WINDOWS * WINDOW_MS
                span = f"since={since}&until={since + SLOW_WINDOWS * WINDOW_MS}"
                origin = f"shop/service-{services // 2:05d}"
                async with httpx.AsyncClient(base_url=address, headers=doors.headers(tenant), timeout=60) as client:
                    causes = (await client.get(f"/v1/root-cause?{span}")).raise_for_status().json()["causes"]
                    result[f"{services} services, {edges} edges"] = {
                        "root_cause": await measure(client, app, f"/v1/root-cause?{span}&limit=6", repeats),
                        "blast_radius": await measure(
                            client, app, f"/v1/blast-radius?service={origin}&{span}", repeats
                        ),
                        "is_right": bool(causes) and causes[0]["service"] == origin,
                        "goal_ms": GOALS_MS.get(services),
                    }
        writer.close()
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, help="As many instead of 200, 60 and 30.")
    parser.add_argument("--services", type=int, help="Only the network with so many services.")
    options = parser.parse_args(arguments)
    sizes = [
        (services, edges, options.repeats or repeats)
        for services, edges, repeats in SIZES
        if options.services in (None, services)
    ]
    if not sizes:
        parser.error(f"--services: one of {', '.join(str(one[0]) for one in SIZES)}")
    result = asyncio.run(run(sizes))
    if not options.json:
        for name, figures in result.items():
            goal = f" (goal {figures['goal_ms']} ms)" if figures["goal_ms"] else ""
            print(f"{name}{goal}; root cause named first: {'yes' if figures['is_right'] else 'no'}")
            for what in ("root_cause", "blast_radius"):
                print(f"  {what:14} " + "  ".join(f"{key} {value}" for key, value in figures[what].items()))
    return result


if __name__ == "__main__":
    main()
