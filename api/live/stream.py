"""What one live client is sent: what it has missed, from memory or the store, then what comes, without hole or double.

Order is that of the tenant's partition of `drift-events`. The client subscribes first; then what lies between the last
event it has seen and the first one that waits for it is read: from the hub's memory if that reaches back so far, else
from ClickHouse up to the oldest event in memory, waiting for it to be stored.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from api.live.hub import Hub, LiveItem, Subscription
from api.repository import Repository
from schemas.ids import TenantId
from schemas.live_events import PlacedEvent

HEARTBEAT_S = 15.0
PAGE = 500
POLL_S = 0.5
STORED_WITHIN_S = 15.0
"""How long an event that is not stored yet is waited for: the sink is some seconds behind the topic."""

UNKNOWN_ID, BEHIND = "unknown-id", "behind"
"""The event is not known (any more): what was missed cannot be told. The store is too far behind: try again."""


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to send: ``event``, ``reset`` (a reason; events may be missing), ``ping`` or ``end`` (a reason)."""

    kind: str
    item: LiveItem | None = None
    reason: str = ""


class LiveStream:
    """The messages for one client.

    Args:
        held: events in memory when it subscribed.
    """

    def __init__(
        self, hub: Hub, subscription: Subscription, held: dict[str, LiveItem], repository: Repository, tenant: TenantId
    ) -> None:
        self._hub, self._subscription, self._held = hub, subscription, held
        self._repository, self._tenant = repository, tenant
        self._at: tuple[str, int] | None = None

    async def messages(self, last_id: str | None) -> AsyncIterator[Message]:
        """Yield what is to be sent; ends with ``end``. ``last_id``: the last event the client has seen."""
        if last_id is not None:
            async for message in self._missed(last_id):
                yield message
                if message.kind == "end":
                    return
        subscription = self._subscription
        while True:
            await subscription.wait(HEARTBEAT_S)
            self._hub.check(subscription)
            if not subscription.items and not subscription.end:
                yield Message("ping")
            while subscription.items:
                item = subscription.items.popleft()
                if self._is_next(item.placed):
                    yield Message("event", item)
            if subscription.end:
                yield Message("end", reason=subscription.end)
                return

    def _is_next(self, placed: PlacedEvent) -> bool:
        """Say whether an event lies behind all that were sent, and note it."""
        if self._at is not None and self._at[0] == placed.incarnation and placed.position <= self._at[1]:
            return False
        self._at = placed.incarnation, placed.position
        return True

    async def _missed(self, last_id: str) -> AsyncIterator[Message]:
        if last_id in self._held:
            for message in self._of_memory(self._held[last_id].placed):
                yield message
            return
        place = await self._place_of(last_id)
        if self._subscription.end:
            return
        if place is None:
            yield Message("reset", reason=UNKNOWN_ID)
            return
        oldest = next(iter(self._held.values()), None)
        self._at = place[0], place[1]
        async for message in self._of_store(*place, None if oldest is None else oldest.placed):
            yield message
            if message.kind == "end":
                return
        if self._subscription.end:
            return
        for message in self._of_memory(None):
            yield message

    def _of_memory(self, after: PlacedEvent | None) -> list[Message]:
        """Return the events in memory behind one, that the client wants."""
        if after is not None:
            self._at = after.incarnation, after.position
        items = [item for item in self._held.values() if self._is_next(item.placed)]
        return [Message("event", item) for item in items if self._subscription.is_wanted(item.placed.event)]

    async def _place_of(self, last_id: str) -> tuple[str, int, int] | None:
        """Return where the last event seen stands, in the topic's or the store's order."""
        end_s = asyncio.get_running_loop().time() + STORED_WITHIN_S
        while not self._subscription.end:
            place = await self._repository.place_of(self._tenant, last_id)
            if place is not None or asyncio.get_running_loop().time() >= end_s:
                return place
            await self._subscription.pause(POLL_S)
        return None

    async def _of_store(
        self, incarnation: str, position: int, stored_ms: int, oldest: PlacedEvent | None
    ) -> AsyncIterator[Message]:
        """Yield stored events behind a place, until the store has all that are older than ``oldest``."""
        end_s = asyncio.get_running_loop().time() + STORED_WITHIN_S
        seen = {incarnation}
        while not self._subscription.end:
            page = await self._repository.events_behind(self._tenant, incarnation, position, PAGE)
            for placed in page:
                position = placed.position
                if self._is_next(placed) and self._subscription.is_wanted(placed.event):
                    yield Message("event", LiveItem(placed))
                if oldest is not None and placed.event.event_id == oldest.event.event_id:
                    return
            if page:
                end_s = asyncio.get_running_loop().time() + STORED_WITHIN_S
                if len(page) == PAGE:
                    continue
            following = await self._repository.next_incarnation(self._tenant, incarnation, stored_ms)
            if following is not None and following[0] not in seen:
                (incarnation, stored_ms), position = following, -1
                seen.add(incarnation)
                continue
            if oldest is None or (incarnation == oldest.incarnation and position >= oldest.position):
                return
            if asyncio.get_running_loop().time() >= end_s:
                yield Message("end", reason=BEHIND)
                return
            await self._subscription.pause(POLL_S)
