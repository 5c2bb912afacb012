"""Hands each event of `drift-events` to the live clients of its tenant. In memory, one per process, bounded everywhere.

Each client has a queue; one that is full ends its client, who may come back behind the last event it has seen. The last
events of each tenant are held, so that who comes back soon is served from memory.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from api.problems import RETRY_AFTER_S, Problem
from api.responses import event_out
from api.security.limits import too_many
from api.security.principal import Principal, Refused
from schemas.drift import DriftEvent
from schemas.live_events import EventFeed, PlacedEvent

HELD_PER_TENANT = 1_000
MAX_HELD = 20_000
"""Events held of all tenants together; some KiB each."""
MAX_QUEUED = 1_000
CHECK_EVERY_S = 1.0

SLOW, CREDENTIAL, GAP, STOP, GONE = "slow", "credential", "gap", "stop", "gone"
"""Why a stream ends: the client reads too slowly; its credential ended; events were missed here; the server stops; the
client left."""
_AT_ONCE = frozenset({SLOW, CREDENTIAL, GONE})
"""Ends after which nothing that waits is sent any more."""

Wants = Callable[[DriftEvent], bool]


@dataclass(slots=True)
class LiveItem:
    """An event, and its JSON once somebody has wanted it."""

    placed: PlacedEvent
    _json: str = field(default="", repr=False)

    @property
    def id(self) -> str:
        """Return the event's id."""
        return self.placed.event.event_id

    def json(self) -> str:
        """Return the event as the API answers it: written once, whoever many read it."""
        if not self._json:
            self._json = event_out(self.placed.event).model_dump_json()
        return self._json


class Subscription:
    """What waits for one client.

    Attributes:
        end: why it has ended, empty while it goes on.
        items: what waits. is_wanted: says whether the client has asked for an event.
    """

    def __init__(self, principal: Principal, wants: Wants) -> None:
        self.principal, self.is_wanted = principal, wants
        self.items: deque[LiveItem] = deque()
        self.end = ""
        self._news, self._ended = asyncio.Event(), asyncio.Event()

    def offer(self, item: LiveItem) -> None:
        """Have an event wait, if the client wants it; the one too many ends it."""
        if self.end or not self.is_wanted(item.placed.event):
            return
        if len(self.items) >= MAX_QUEUED:
            self.finish(SLOW)
            return
        self.items.append(item)
        self._news.set()

    def finish(self, reason: str) -> None:
        """End it; the first reason stays."""
        if not self.end:
            self.end = reason
            if reason in _AT_ONCE:
                self.items.clear()
        self._news.set()
        self._ended.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait for something to take, for the end, or for so long."""
        if not self.items and not self.end:
            self._news.clear()
            await _set_within(self._news, timeout_s)

    async def pause(self, timeout_s: float) -> None:
        """Wait for so long, or for the end."""
        await _set_within(self._ended, timeout_s)


async def _set_within(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return


class Hub:
    """All live clients of this process.

    Args:
        feed: reads the topic; ``None``: there are no live events here.
        recheck: raises `Refused` for one who would not be let in any more.
    """

    def __init__(self, feed: EventFeed | None, recheck: Callable[[Principal], None], most_per_tenant: int) -> None:
        self._feed, self._recheck, self._most = feed, recheck, most_per_tenant
        self._clients: dict[str, set[Subscription]] = {}
        self._held: dict[str, dict[str, LiveItem]] = {}
        self._order: deque[tuple[str, LiveItem]] = deque()
        self._checker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read."""
        if self._feed is not None:
            await self._feed.start(self.take, self.lose)
            self._checker = asyncio.create_task(self._check(), name="credentials of live clients")

    async def stop(self) -> None:
        """End all clients and stop reading."""
        self._end_all(STOP)
        if self._checker is not None:
            self._checker.cancel()
        if self._feed is not None:
            await self._feed.stop()

    def check_ready(self) -> None:
        """Refuse while the topic is not read.

        Raises:
            Problem: 503.
        """
        if self._feed is None or not self._feed.is_live:
            detail = "Live events are not read from Kafka now; GET /v1/drift-events has what is stored."
            headers = {"Retry-After": RETRY_AFTER_S}
            raise Problem(503, "live-unavailable", "No live events now", detail, headers=headers)

    def subscribe(self, principal: Principal, wants: Wants) -> tuple[Subscription, dict[str, LiveItem]]:
        """Return a new client's queue, and the events held of its tenant by id, in order: what comes is behind them.

        Raises:
            Problem: 429 the tenant has too many clients; 503 the topic is not read.
        """
        self.check_ready()
        clients = self._clients.setdefault(principal.tenant, set())
        if len(clients) >= self._most:
            raise too_many("This tenant has too many live clients in this process.", 5)
        subscription = Subscription(principal, wants)
        clients.add(subscription)
        return subscription, dict(self._held.get(principal.tenant, {}))

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a client."""
        subscription.finish(GONE)
        tenant = subscription.principal.tenant
        clients = self._clients.get(tenant, set())
        clients.discard(subscription)
        if not clients:
            self._clients.pop(tenant, None)

    @property
    def clients(self) -> int:
        """Return how many there are."""
        return sum(len(clients) for clients in self._clients.values())

    def take(self, placed: PlacedEvent) -> None:
        """Hand an event to the clients of its tenant; one that is still held is a repeat and goes to nobody."""
        tenant = placed.event.tenant
        held = self._held.setdefault(tenant, {})
        if placed.event.event_id in held:
            return
        item = LiveItem(placed)
        held[item.id] = item
        self._order.append((tenant, item))
        if len(held) > HELD_PER_TENANT:
            del held[next(iter(held))]
        while len(self._order) > MAX_HELD:
            self._forget_oldest()
        for client in tuple(self._clients.get(tenant, ())):
            client.offer(item)

    def _forget_oldest(self) -> None:
        tenant, item = self._order.popleft()
        held = self._held.get(tenant, {})
        if held.get(item.id) is item:
            del held[item.id]
        if not held:
            self._held.pop(tenant, None)

    def lose(self) -> None:
        """End all clients: events were missed, which those who come back read from the store."""
        self._held.clear()
        self._order.clear()
        self._end_all(GAP)

    def _end_all(self, reason: str) -> None:
        for client in tuple(itertools.chain.from_iterable(self._clients.values())):
            client.finish(reason)

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            for client in tuple(itertools.chain.from_iterable(self._clients.values())):
                self.check(client)

    def check(self, client: Subscription) -> None:
        """End a client whose credential has ended."""
        try:
            self._recheck(client.principal)
        except Refused:
            client.finish(CREDENTIAL)
