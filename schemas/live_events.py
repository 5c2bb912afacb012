"""Drift events as they happen: what the API is given of `drift-events`, whoever reads the topic."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from schemas.drift import DriftEvent


class PlacedEvent(msgspec.Struct, frozen=True):
    """An event and where it stands.

    Attributes:
        incarnation: of the topics. position: its offset; orders the events of one tenant and incarnation.
    """

    incarnation: str
    position: int
    event: DriftEvent


class EventFeed(Protocol):
    """Reads `drift-events`: some of its end at the start, then what comes. Each tenant's events in their order."""

    async def start(self, on_event: Callable[[PlacedEvent], None], on_gap: Callable[[], None]) -> None:
        """Begin to read in the background; returns at once, also while the topic is away.

        Args:
            on_event: takes each event, repeats among them. on_gap: is told that events were missed.
        """
        ...

    @property
    def is_live(self) -> bool:
        """Whether what was there at the start has been read and the topic answers."""
        ...

    async def stop(self) -> None:
        """Stop reading."""
        ...
