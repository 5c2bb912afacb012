"""Live events over real sockets: from a topic of the test's own, and over a real broker."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from api.app import create_app
from api.live import hub as hub_module
from api.live import stream as stream_module
from api.security.principal import Role
from deploy.http_server import server_config
from schemas.access_records import API_KEY
from schemas.drift import Activity, DriftEvent
from schemas.ids import partition_of
from schemas.live_events import PlacedEvent
from schemas.ocsf import encode_event, event_key
from schemas.settings import ApiSettings, Settings
from schemas.topics import DRIFT_EVENTS
from streams import event_feed
from streams.event_feed import KafkaEventFeed
from streams.kafka_clients import make_producer
from streams.metrics import Metrics
from streams.sinks.rows import drift_rows
from streams.sinks.writer import Message, PartitionWriter, Poison
from streams.topics import ensure_topics
from tests.access import PATIENCE_S, Doors, patient_limits
from tests.builders_clickhouse import MINUTE_MS, ClickHouse, make_event

LIMITS = patient_limits(live_per_tenant=250)
CLIENTS = 200
INCARNATION = "1"


class FakeFeed:
    """A topic that the test writes."""

    def __init__(self) -> None:
        self.is_live = True
        self.on_event: Callable[[PlacedEvent], None] = lambda _: None
        self.position = 0

    async def start(self, on_event: Callable[[PlacedEvent], None], on_gap: Callable[[], None]) -> None:
        self.on_event = on_event

    async def stop(self) -> None: ...

    def tell(self, event: DriftEvent) -> str:
        """Put an event on the topic; return its id."""
        self.on_event(PlacedEvent(INCARNATION, self.position, event))
        self.position += 1
        return event.event_id


def event_of(number: int, tenant: str = "acme", **changes: Any) -> DriftEvent:
    return make_event(Activity.UPDATE, tenant=tenant, window_start_ms=number * MINUTE_MS, **changes)


class Served:
    """An API on a real port."""

    def __init__(self, port: int, doors: Doors, client: httpx.AsyncClient) -> None:
        self.port, self.doors, self.client = port, doors, client
        self.http, self.ws = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/v1/live/socket"

    @asynccontextmanager
    async def events(self, headers: dict[str, str], **parameters: Any) -> AsyncIterator["Events"]:
        path = f"{self.http}/v1/live/events"
        async with self.client.stream("GET", path, params=parameters, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            events = Events(answer.aiter_lines())
            assert await events.lines.__anext__() == "retry: 3000"  # it is subscribed
            yield events


class Events:
    """Server-sent events as a client reads them."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self.lines = lines

    async def next(self) -> dict[str, Any]:
        """Return the next one; comments are passed over."""
        found: dict[str, Any] = {}
        async for line in self.lines:
            name, _, value = line.partition(": ")
            if name in ("id", "event", "data"):
                found[name] = value
            elif not line and "event" in found:
                return found | {"data": json.loads(found["data"])}
        raise EOFError

    async def ids(self, count: int) -> list[str]:
        """Return the ids of the next events."""
        return [(await self.next())["id"] for _ in range(count)]


@asynccontextmanager
async def serve(settings: Settings, feed: Any, doors: Doors) -> AsyncIterator[Served]:
    app = create_app(settings, doors.access, feed=feed)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(app, settings.api, "warning"))
    task = asyncio.create_task(server._serve(sockets=[listener]))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not server.started:
                await asyncio.sleep(0.01)
        unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=None, limits=unbounded, verify=False) as client:
            yield Served(listener.getsockname()[1], doors, client)
    finally:
        server.should_exit = server.force_exit = True
        await task


@pytest.fixture
def feed() -> FakeFeed:
    return FakeFeed()


@pytest.fixture
async def served(clickhouse: ClickHouse, feed: FakeFeed) -> AsyncIterator[Served]:
    settings = Settings(clickhouse=clickhouse.settings, api=ApiSettings(limits=LIMITS))
    async with serve(settings, feed, Doors(settings.api)) as one:
        yield one


async def store(clickhouse: ClickHouse, *events: tuple[int, DriftEvent]) -> None:
    """Store events as the sink does."""

    async def no_poison(poison: Poison) -> None:
        raise AssertionError(poison)

    writer = PartitionWriter(
        clickhouse.client, clickhouse.database, "drift-events", 0, drift_rows, no_poison, Metrics(), incarnation="1"
    )
    await writer.write([Message(position, encode_event(event)) for position, event in events])


async def test_each_client_gets_the_events_of_its_tenant_alone(served: Served, feed: FakeFeed) -> None:
    mine, theirs = (served.doors.headers(tenant) for tenant in ("acme", "globex"))
    async with served.events(mine) as acme, served.events(theirs) as globex:
        first = feed.tell(event_of(1))
        other = feed.tell(event_of(1, "globex"))
        second = feed.tell(event_of(2))
        told = await acme.next()
        assert (told["event"], told["id"], told["data"]["event_id"]) == ("drift", first, first)
        assert told["data"]["subject"] == "shop/web -> ext:evil.example:443"
        assert await acme.ids(1) == [second] and await globex.ids(1) == [other]


async def test_a_client_that_comes_back_goes_on_behind_its_last_event(
    served: Served, feed: FakeFeed, clickhouse: ClickHouse
) -> None:
    """From the store, over the seam to memory, to what comes: each event once and in order; only one's own."""
    headers = served.doors.headers("acme")
    events = [event_of(number) for number in range(8)]
    others = [event_of(number, "globex") for number in range(3)]
    stored = [*enumerate(events[:6]), *enumerate(others, 100)]
    await store(clickhouse, *stored)
    await store(clickhouse, *stored[:2])  # repeated after a crash
    feed.position = 4
    for event in (*others, *events[4:7]):
        feed.position = events.index(event) if event in events else feed.position
        feed.tell(event)
    expected = [event.event_id for event in events]
    for last in (0, 2, 5):
        async with served.events(headers | {"Last-Event-ID": expected[last]}) as back:
            assert await back.ids(6 - last) == expected[last + 1 : 7]
    async with served.events(headers, last_event_id=expected[1]) as back:
        assert await back.ids(5) == expected[2:7]
        feed.position = 7
        feed.tell(events[7])
        assert await back.ids(1) == expected[7:]


async def test_another_tenants_event_is_no_place_to_go_on_from(
    served: Served, feed: FakeFeed, clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "STORED_WITHIN_S", 0.0)
    await store(clickhouse, (0, event_of(0, "globex")), (1, event_of(1, "globex")))
    feed.tell(event_of(0, "globex"))
    headers = served.doors.headers("acme") | {"Last-Event-ID": event_of(0, "globex").event_id}
    async with served.events(headers) as events:
        told = await events.next()
        assert (told["event"], told["data"]) == ("reset", {"reason": "unknown-id"})
        mine = feed.tell(event_of(5))
        assert await events.ids(1) == [mine]


async def test_a_revoked_key_ends_its_streams_and_says_why(served: Served, feed: FakeFeed) -> None:
    key = served.doors.key("acme")
    headers = {"X-API-Key": key}
    async with served.events(headers) as events, socket_of(served, headers) as ws:
        served.doors._put("acme", API_KEY, key.split("_")[1], None)  # type: ignore[arg-type]
        served.doors.access.directory.keys.clear()
        feed.tell(event_of(1))
        told = await events.next()
        assert (told["event"], told["data"]) == ("end", {"reason": "credential"})
        assert json.loads(await ws.recv()) == {"type": "end", "reason": "credential"}
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1008


async def test_an_expired_key_ends_its_stream(served: Served, feed: FakeFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    key = served.doors.key("acme", expires_s=served.doors.clock.ms // 1_000 + 60)
    async with served.events({"Authorization": f"Bearer {key}"}) as events:
        first = feed.tell(event_of(1))
        assert await events.ids(1) == [first]
        served.doors.clock.pass_s(61)
        feed.tell(event_of(2))
        assert (await events.next())["data"] == {"reason": "credential"}


def socket_of(served: Served, headers: dict[str, str], path: str = "", **more: Any) -> Any:
    return connect(
        served.ws + path, additional_headers=headers, proxy=None, open_timeout=None, ping_interval=None, **more
    )


async def test_a_socket_is_sent_the_same(served: Served, feed: FakeFeed) -> None:
    headers = served.doors.headers("acme")
    feed.tell(event_of(0))
    missed = feed.tell(event_of(1, severity=event_of(0).severity))
    async with socket_of(served, headers, f"?last_event_id={event_of(0).event_id}") as ws:
        assert json.loads(await ws.recv())["id"] == missed
        feed.tell(event_of(2, "globex"))
        third = feed.tell(event_of(3))
        told = json.loads(await ws.recv())
        assert (told["type"], told["id"], told["event"]["event_id"]) == ("event", third, third)
    async with socket_of(served, headers, "?service=nobody&kind=new_edge") as ws:
        feed.tell(event_of(4))
        wanted = feed.tell(event_of(5, src="nobody"))
        assert json.loads(await ws.recv())["id"] == wanted


async def test_a_page_offers_its_credential_as_a_subprotocol(served: Served, feed: FakeFeed) -> None:
    key = served.doors.key("acme")
    offered = [Subprotocol("drift.v1"), Subprotocol(f"bearer.{key}")]
    async with socket_of(served, {}, subprotocols=offered) as ws:
        assert ws.subprotocol == "drift.v1"
        told = feed.tell(event_of(1))
        assert json.loads(await ws.recv())["id"] == told


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({}, "", 401),
        ({"X-API-Key": "sgd_0123456789abcdef_" + "A" * 43}, "", 401),
        ({"Authorization": "Basic YTpi"}, "", 401),
        ({"Sec-WebSocket-Protocol": "bearer.a, bearer.b"}, "", 401),
        ({"key": "acme", "Origin": "https://evil.example"}, "", 403),
        ({"key": "acme", "Host": "evil.example"}, "", 421),
        ({"key": "acme"}, "?tenant=globex", 422),
        ({"key": "acme"}, "?kind=nope", 422),
        ({"key": "acme"}, "?min_severity=nope", 422),
        ({"key": "acme"}, "?last_event_id=" + "x" * 65, 422),
    ],
)
async def test_a_socket_that_may_not_be_opened_is_refused_with_a_problem(
    served: Served, headers: dict[str, str], path: str, status: int
) -> None:
    sent = {name: value for name, value in headers.items() if name != "key"}
    if "key" in headers:
        sent |= served.doors.headers(headers["key"])
    named = sent.pop("Host", "127.0.0.1")
    if "Sec-WebSocket-Protocol" in sent:
        offered = [Subprotocol(one) for one in sent.pop("Sec-WebSocket-Protocol").split(", ")]
    else:
        offered = None
    with pytest.raises(InvalidStatus) as raised:
        uri = served.ws.replace("127.0.0.1", named) + path
        to: dict[str, Any] = {"host": "127.0.0.1", "port": served.port, "open_timeout": None}
        async with connect(uri, additional_headers=sent, proxy=None, subprotocols=offered, **to):
            pass
    answer = raised.value.response
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == json.loads(answer.body or b"{}")["request_id"]


async def test_one_tenant_cannot_take_all_live_places(clickhouse: ClickHouse, feed: FakeFeed) -> None:
    limits = LIMITS.model_copy(update={"live_per_tenant": 1, "concurrent_per_tenant": 1})
    settings = Settings(clickhouse=clickhouse.settings, api=ApiSettings(limits=limits))
    async with serve(settings, feed, Doors(settings.api)) as served:
        headers = served.doors.headers("acme")
        async with served.events(headers):
            async with httpx.AsyncClient(base_url=served.http, timeout=PATIENCE_S) as client:
                answer = await client.get("/v1/live/events", headers=headers)
                assert answer.status_code == 429 and answer.headers["retry-after"]
                # A stream is not among the requests under way.
                assert (await client.get("/v1/me", headers=headers)).status_code == 200
            async with served.events(served.doors.headers("globex")):
                pass
        async with asyncio.timeout(PATIENCE_S):
            while not await _is_free(served, headers):
                await asyncio.sleep(0.02)
        feed.is_live = False
        async with httpx.AsyncClient(base_url=served.http, timeout=PATIENCE_S) as client:
            answer = await client.get("/v1/live/events", headers=headers)
            assert answer.status_code == 503 and answer.json()["type"].endswith(":live-unavailable")


async def _is_free(served: Served, headers: dict[str, str]) -> bool:
    async with served.client.stream("GET", f"{served.http}/v1/live/events", headers=headers) as answer:
        return answer.status_code == 200


async def test_a_client_that_reads_too_slowly_is_ended_and_may_come_back(
    served: Served, feed: FakeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "MAX_QUEUED", 5)
    headers = served.doors.headers("acme")
    async with served.events(headers) as slow:
        told = [feed.tell(event_of(number)) for number in range(20)]  # in one go: nothing is sent between
        assert (await slow.next())["data"] == {"reason": "slow"}
    async with served.events(headers | {"Last-Event-ID": told[0]}) as back:
        assert await back.ids(19) == told[1:]


async def test_a_stream_outlives_the_limit_of_a_request(
    clickhouse: ClickHouse, feed: FakeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.1)
    limits = LIMITS.model_copy(update={"request_timeout_s": 0.05})
    settings = Settings(clickhouse=clickhouse.settings, api=ApiSettings(limits=limits))
    async with (
        serve(settings, feed, Doors(settings.api)) as served,
        served.events(served.doors.headers("acme")) as events,
    ):
        while await events.lines.__anext__() != ": ping":
            pass
        told = feed.tell(event_of(1))
        assert await events.ids(1) == [told]


@pytest.mark.kafka
async def test_200_clients_get_every_event_over_a_real_broker(
    kafka_bootstrap: str, settings_for: Callable[..., Settings], clickhouse: ClickHouse
) -> None:
    """Half of them by WebSocket, all of one tenant of two."""
    settings = settings_for(kafka_bootstrap, clickhouse=clickhouse.settings, api=ApiSettings(limits=LIMITS))
    counts = await ensure_topics(settings)
    topic = settings.topics.name(DRIFT_EVENTS.role)
    producer = make_producer(settings.kafka)
    await producer.start()
    expected = [event_of(number).event_id for number in range(40)]

    async def publish(events: list[DriftEvent]) -> None:
        for event in events:
            partition = partition_of(event.tenant, counts[topic])
            await producer.send(topic, value=encode_event(event), key=event_key(event), partition=partition)
        await producer.flush()

    async def by_socket(served: Served, ready: asyncio.Semaphore, headers: dict[str, str]) -> list[str]:
        ws: ClientConnection
        async with socket_of(served, headers) as ws:
            ready.release()
            return [json.loads(await ws.recv())["id"] for _ in expected]

    async def by_events(served: Served, ready: asyncio.Semaphore, headers: dict[str, str]) -> list[str]:
        async with served.events(headers) as events:
            ready.release()
            return await events.ids(len(expected))

    try:
        async with (
            serve(settings, KafkaEventFeed(settings), Doors(settings.api)) as served,
            asyncio.timeout(PATIENCE_S),
        ):
            headers = served.doors.headers("acme", Role.VIEWER)
            while not await _is_free(served, headers):
                await asyncio.sleep(0.05)
            ready = asyncio.Semaphore(0)
            events = [event_of(number, tenant) for number in range(40) for tenant in ("acme", "globex")]
            async with asyncio.TaskGroup() as group:
                clients = [
                    group.create_task((by_socket if number % 2 else by_events)(served, ready, headers))
                    for number in range(CLIENTS)
                ]
                for _ in range(CLIENTS):
                    await ready.acquire()
                await publish(events)
            assert [client.result() for client in clients] == [expected] * CLIENTS
    finally:
        await producer.stop()


@pytest.mark.kafka
async def test_who_comes_back_misses_nothing_over_a_real_broker(
    kafka_bootstrap: str,
    settings_for: Callable[..., Settings],
    clickhouse: ClickHouse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the process it left, and to a new one that knows the past from the store alone; by both channels."""
    monkeypatch.setattr(stream_module, "STORED_WITHIN_S", PATIENCE_S)
    settings = settings_for(kafka_bootstrap, clickhouse=clickhouse.settings, api=ApiSettings(limits=LIMITS))
    counts = await ensure_topics(settings)
    topic = settings.topics.name(DRIFT_EVENTS.role)
    producer = make_producer(settings.kafka)
    await producer.start()
    events = [event_of(number) for number in range(30)]
    expected = [event.event_id for event in events]

    async def publish(some: list[DriftEvent]) -> None:
        """Have them on the topic, another tenant's between them, and in the store as the sink puts them there."""
        placed = []
        for event in some:
            for one in (event, event_of(0, "globex", src=event.event_id)):
                partition = partition_of(one.tenant, counts[topic])
                told = await producer.send_and_wait(topic, encode_event(one), event_key(one), partition)
                placed.append((told.offset, one))
        await store(clickhouse, *placed)

    async def by_socket(served: Served, last: str, count: int) -> list[str]:
        async with socket_of(served, headers, f"?last_event_id={last}") as ws:
            return [json.loads(await ws.recv())["id"] for _ in range(count)]

    async def by_events(served: Served, last: str, count: int) -> list[str]:
        async with served.events(headers | {"Last-Event-ID": last}) as some:
            return await some.ids(count)

    doors = Doors(settings.api)
    headers = doors.headers("acme", Role.VIEWER)
    try:
        async with serve(settings, KafkaEventFeed(settings), doors) as served, asyncio.timeout(PATIENCE_S):
            while not await _is_free(served, headers):
                await asyncio.sleep(0.05)
            async with served.events(headers) as there, socket_of(served, headers) as ws:
                await publish(events[:10])
                assert await there.ids(10) == expected[:10]
                assert [json.loads(await ws.recv())["id"] for _ in range(10)] == expected[:10]
            await publish(events[10:20])
            for back in (by_socket, by_events):
                assert await back(served, expected[4], 15) == expected[5:20]
        monkeypatch.setattr(event_feed, "LOOKBACK", 0)  # nothing of the past from Kafka
        async with serve(settings, KafkaEventFeed(settings), doors) as served, asyncio.timeout(PATIENCE_S):
            while not await _is_free(served, headers):
                await asyncio.sleep(0.05)
            for back in (by_socket, by_events):
                assert await back(served, expected[9], 10) == expected[10:20]
            waiting = [asyncio.create_task(back(served, expected[14], 15)) for back in (by_socket, by_events)]
            await publish(events[20:])
            assert await asyncio.gather(*waiting) == [expected[15:]] * 2
    finally:
        await producer.stop()
