"""Whole windows out of the messages of one partition of `graph-windows`, lanes in order of time. Pure.

Workers publish the windows that one record closes side by side, so their messages mix, and publish them again after a
crash. What comes out depends on the messages alone, not on how they are cut into fetches.
"""

from dataclasses import dataclass, field

import msgspec

from schemas.graph import GRAPH_CHUNK_VERSION, GraphChunk, decode_chunk

LaneKey = tuple[str, str]
"""Tenant and lane."""
Place = tuple[int, int]
"""Generation and start of a window: its place in its lane."""

MOST_OPEN = 256
"""Windows of a lane that wait for an earlier one; then that one is given up. A worker publishes 200 side by side."""


@dataclass(frozen=True, slots=True)
class WholeWindow:
    """A closed window as its messages say it.

    Attributes:
        offset: of its marker. shards: its edges, in order; ``None`` where some are missing.
    """

    offset: int
    marker: GraphChunk
    shards: tuple[GraphChunk, ...] | None

    @property
    def lane(self) -> LaneKey:
        """Return whose it is."""
        return self.marker.tenant, self.marker.lane

    @property
    def place(self) -> Place:
        """Return its place in its lane."""
        return self.marker.generation, self.marker.start_ms


@dataclass(slots=True)
class _Open:
    first_offset: int
    shards: dict[int, GraphChunk] = field(default_factory=dict)
    marker: GraphChunk | None = None
    marker_offset: int = -1

    def closed(self) -> WholeWindow | None:
        if self.marker is None:
            return None
        wanted = range(self.marker.shards)
        shards = tuple(self.shards[number] for number in wanted) if self.shards.keys() == set(wanted) else None
        return WholeWindow(self.marker_offset, self.marker, shards)


class WindowAssembly:
    """Takes the messages of one partition, in order.

    Attributes:
        next_offset: behind the last message taken. unreadable: messages that were no chunk.
        given_up: windows whose marker never came, passed over for later ones.
        repeated: markers of windows that had come out before, or behind which the lane already was.
    """

    def __init__(self) -> None:
        self.next_offset = 0
        self.unreadable = 0
        self.repeated = 0
        self.given_up = 0
        self._lanes: dict[LaneKey, dict[Place, _Open]] = {}
        self._passed: dict[LaneKey, Place] = {}

    @property
    def safe_offset(self) -> int:
        """Return the offset from which a successor has to read: no message of an unfinished window lies before it."""
        firsts = [one.first_offset for lane in self._lanes.values() for one in lane.values()]
        return min([self.next_offset, *firsts])

    def take(self, offset: int, value: bytes | None) -> list[WholeWindow]:
        """Take a message and return the windows that are whole by it, earlier ones of a lane first."""
        self.next_offset = offset + 1
        chunk = None if value is None else self._read(value)
        if chunk is None:
            return []
        key, place = (chunk.tenant, chunk.lane), (chunk.generation, chunk.start_ms)
        passed = self._passed.get(key)
        if passed is not None and place <= passed:
            self.repeated += chunk.is_marker
            return []
        windows = self._lanes.setdefault(key, {})
        window = windows.setdefault(place, _Open(offset))
        if chunk.is_marker:
            window.marker, window.marker_offset = chunk, offset
        else:
            window.shards[chunk.shard] = chunk
        return self._finished(key, windows)

    def _read(self, value: bytes) -> GraphChunk | None:
        try:
            chunk = decode_chunk(value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            chunk = None
        if chunk is None or chunk.v != GRAPH_CHUNK_VERSION:
            self.unreadable += 1
            return None
        return chunk

    def _finished(self, key: LaneKey, windows: dict[Place, _Open]) -> list[WholeWindow]:
        found = []
        for place in sorted(windows):
            window = windows[place].closed()
            if window is None and len(windows) <= MOST_OPEN:
                break
            self._passed[key] = place
            del windows[place]
            if window is None:
                self.given_up += 1
            else:
                found.append(window)
        if not windows:
            del self._lanes[key]
        return found
