"""What a live client is sent, whatever memory and store hold when it comes. A fake store lags behind the topic."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.live import hub as hub_module
from api.live import stream as stream_module
from api.live.hub import CREDENTIAL, GAP, SLOW, STOP, Hub, Subscription
from api.live.stream import BEHIND, UNKNOWN_ID, LiveStream, Message
from api.problems import Problem
from api.security.principal import How, Principal, Refused, Role
from schemas.drift import Activity
from schemas.ids import TenantId
from schemas.live_events import PlacedEvent
from tests.builders_clickhouse import MINUTE_MS, make_event

ACME = Principal("x", TenantId("acme"), Role.VIEWER, How.API_KEY, "x")


def placed(number: int, tenant: str = "acme", incarnation: str = "1", position: int | None = None) -> PlacedEvent:
    event = make_event(Activity.UPDATE, tenant=tenant, window_start_ms=number * MINUTE_MS)
    return PlacedEvent(incarnation, 3 * number if position is None else position, event)


class FakeFeed:
    """A topic that is read as the test says."""

    is_live = True

    async def start(self, on_event: Any, on_gap: Any) -> None: ...

    async def stop(self) -> None: ...


def _nothing() -> None: ...


class LaggingStore:
    """Holds the first ``stored`` of the events; each look lets the sink store one more."""

    def __init__(self, events: list[PlacedEvent], stored: int) -> None:
        self.events, self.stored = events, stored
        self.on_look: Callable[[], None] = _nothing

    def _look(self) -> list[PlacedEvent]:
        now = self.events[: self.stored]
        self.stored += 1
        self.on_look()
        return now

    async def place_of(self, tenant: str, event_id: str) -> tuple[str, int, int] | None:
        found = [(i, one) for i, one in enumerate(self._look()) if one.event.event_id == event_id]
        return (found[0][1].incarnation, found[0][1].position, found[0][0]) if found else None

    async def events_behind(self, tenant: str, incarnation: str, position: int, limit: int) -> list[PlacedEvent]:
        rows = [one for one in self._look() if one.incarnation == incarnation and one.position > position]
        return rows[:limit]

    async def next_incarnation(self, tenant: str, incarnation: str, after_ms: int) -> tuple[str, int] | None:
        later = [(i, one) for i, one in enumerate(self.events[: self.stored]) if one.incarnation != incarnation]
        return next(((one.incarnation, i) for i, one in later if i > after_ms), None)


def make_hub(recheck: Any = lambda _: None, most: int = 10) -> Hub:
    return Hub(FakeFeed(), recheck, most)


async def told(stream: LiveStream, last_id: str | None, subscription: Subscription) -> list[Message]:
    """Return all messages; the stream is stopped once it waits for more."""
    found = []
    async for message in stream.messages(last_id):
        if message.kind == "ping":
            subscription.finish(STOP)
        else:
            found.append(message)
    return found


def stream_of(hub: Hub, subscription: Subscription, held: Any, store: Any) -> LiveStream:
    return LiveStream(hub, subscription, held, store, ACME.tenant)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(stream_module, "POLL_S", 0.0)
    monkeypatch.setattr(stream_module, "STORED_WITHIN_S", 3_600.0)  # what is to be too late, a test says itself


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_there_is_no_hole_and_no_double(data: st.DataObject) -> None:
    """Whatever was in memory and in the store when the client came, it is sent what lies behind its last event."""
    count = data.draw(st.integers(2, 12), "events")
    broken_at = data.draw(st.integers(0, count), "first event of the second incarnation")
    events = [
        placed(n, incarnation="1" if n < broken_at else "2", position=3 * n if n < broken_at else n - broken_at)
        for n in range(count)
    ]
    read = data.draw(st.integers(broken_at, count), "read before the client came")
    lookback = data.draw(st.integers(broken_at, read), "first event in memory")
    # What memory does not hold has been stored, or will be; where it holds nothing, the store has all of before.
    stored = data.draw(st.integers(lookback if lookback == read else 0, count), "stored")
    seen = data.draw(st.integers(0, read - 1) if read else st.just(0), "last event seen")
    later = data.draw(st.lists(st.integers(1, 6), max_size=count), "looks after which events come")

    async def run() -> list[str]:
        hub = make_hub()
        for one in events[lookback:read]:
            hub.take(one)
        subscription, held = hub.subscribe(ACME, lambda _: True)
        store = LaggingStore(events[:], stored)
        waiting, looks = iter(events[read:]), iter(later)
        state = {"left": next(looks, 0)}

        def on_look() -> None:
            state["left"] -= 1
            if state["left"] == 0:
                state["left"] = next(looks, 0)
                if (coming := next(waiting, None)) is not None:
                    hub.take(coming)

        store.on_look = on_look
        found = []
        async for message in stream_of(hub, subscription, held, store).messages(events[seen].event.event_id):
            if message.kind == "ping":
                coming = next(waiting, None)
                if coming is None:
                    subscription.finish(STOP)
                else:
                    hub.take(coming)
            elif message.item is not None:
                found.append(message.item.id)
            else:
                assert message.reason == STOP
        return found

    assert asyncio.run(run()) == [one.event.event_id for one in events[seen + 1 :]]


async def test_without_a_last_event_only_what_comes_is_sent() -> None:
    hub = make_hub()
    hub.take(placed(0))
    subscription, held = hub.subscribe(ACME, lambda _: True)
    hub.take(placed(1))
    hub.take(placed(1))  # a repeat of a zombie
    hub.take(placed(2, tenant="globex"))
    messages = await told(stream_of(hub, subscription, held, LaggingStore([], 0)), None, subscription)
    assert [message.item.id for message in messages if message.item] == [placed(1).event.event_id]
    assert (messages[-1].kind, messages[-1].reason) == ("end", STOP)


async def test_filters_hold_for_what_was_missed_too() -> None:
    events = [placed(n) for n in range(6)]
    hub = make_hub()
    for one in events[4:]:
        hub.take(one)
    subscription, held = hub.subscribe(ACME, lambda event: event.window_start_ms // MINUTE_MS % 2 == 1)
    stream = stream_of(hub, subscription, held, LaggingStore(events, 6))
    messages = await told(stream, events[0].event.event_id, subscription)
    assert [m.item.placed.position // 3 for m in messages if m.item] == [1, 3, 5]


async def test_an_event_that_nobody_knows_is_told_and_the_stream_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "STORED_WITHIN_S", 0.0)
    hub = make_hub()
    subscription, held = hub.subscribe(ACME, lambda _: True)
    hub.take(placed(7))
    messages = await told(stream_of(hub, subscription, held, LaggingStore([], 0)), "nobody", subscription)
    assert [(m.kind, m.reason) for m in messages] == [("reset", UNKNOWN_ID), ("event", ""), ("end", STOP)]


async def test_a_store_that_does_not_follow_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events between what is stored and what is in memory would be a hole."""
    monkeypatch.setattr(stream_module, "STORED_WITHIN_S", 0.0)
    events = [placed(n) for n in range(9)]
    hub = make_hub()
    hub.take(events[8])
    subscription, held = hub.subscribe(ACME, lambda _: True)
    store = LaggingStore(events[:4], 4)
    messages = await told(stream_of(hub, subscription, held, store), events[1].event.event_id, subscription)
    assert [m.item.placed.position // 3 for m in messages if m.item] == [2, 3]
    assert (messages[-1].kind, messages[-1].reason) == ("end", BEHIND)


async def test_a_client_that_does_not_read_is_ended_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MAX_QUEUED", 3)
    hub = make_hub()
    slow, held = hub.subscribe(ACME, lambda _: True)
    other, _ = hub.subscribe(ACME, lambda event: event.window_start_ms == 0)
    for n in range(5):
        hub.take(placed(n))
    assert (slow.end, len(slow.items), other.end, len(other.items)) == (SLOW, 0, "", 1)
    messages = await told(stream_of(hub, slow, held, LaggingStore([], 0)), None, slow)
    assert [(m.kind, m.reason) for m in messages] == [("end", SLOW)]


async def test_a_credential_that_ends_ends_its_stream_before_the_next_event() -> None:
    state = {"is_valid": True}

    def recheck(_: Principal) -> None:
        if not state["is_valid"]:
            raise Refused("revoked")

    hub = make_hub(recheck)
    subscription, held = hub.subscribe(ACME, lambda _: True)
    hub.take(placed(0))
    state["is_valid"] = False
    messages = await told(stream_of(hub, subscription, held, LaggingStore([], 0)), None, subscription)
    assert [(m.kind, m.reason) for m in messages] == [("end", CREDENTIAL)]


async def test_events_that_were_missed_here_end_all_streams() -> None:
    hub = make_hub()
    hub.take(placed(0))
    subscription, _ = hub.subscribe(ACME, lambda _: True)
    hub.lose()
    assert subscription.end == GAP
    assert hub.subscribe(ACME, lambda _: True)[1] == {}


async def test_places_are_per_tenant_and_given_back() -> None:
    hub = make_hub(most=1)
    subscription, _ = hub.subscribe(ACME, lambda _: True)
    with pytest.raises(Problem) as raised:
        hub.subscribe(ACME, lambda _: True)
    assert raised.value.status == 429
    globex = Principal("x", TenantId("globex"), Role.VIEWER, How.API_KEY, "x")
    hub.subscribe(globex, lambda _: True)
    hub.unsubscribe(subscription)
    hub.subscribe(ACME, lambda _: True)
    assert hub.clients == 2


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HELD_PER_TENANT", 3)
    monkeypatch.setattr(hub_module, "MAX_HELD", 5)
    hub = make_hub()
    for n in range(4):
        hub.take(placed(n, tenant="globex"))
    for n in range(4):
        hub.take(placed(n))
    held = hub.subscribe(ACME, lambda _: True)[1]
    assert [item.placed.position // 3 for item in held.values()] == [1, 2, 3]
    globex = Principal("x", TenantId("globex"), Role.VIEWER, How.API_KEY, "x")
    assert [item.placed.position // 3 for item in hub.subscribe(globex, lambda _: True)[1].values()] == [3]


async def test_without_a_topic_there_are_no_live_events() -> None:
    with pytest.raises(Problem) as raised:
        Hub(None, lambda _: None, 1).subscribe(ACME, lambda _: True)
    assert (raised.value.status, raised.value.name) == (503, "live-unavailable")
