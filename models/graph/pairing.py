"""Which halves of calls meet: a client's and a server's with one key, wherever in the log they are. Pure.

A half that comes first waits until the other one comes or its own window closes. docs/adr/0009
tells what becomes of repeats, of many servers, and of halves left over; models/graph/halves.py carries it out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

WAITS = -1
_FREED_SHARE = 8
"""Of the bound, one part in so many is freed at once: looking for the oldest costs little then."""


@dataclass(slots=True)
class Met:
    """What becomes of halves, by handle: lists of one length where their names start alike.

    Attributes:
        more_client, more_server: a client's half that was joined already, and one more server's half.
        repeated, repeated_of, repeated_at: a client's half that came again, the first one, and the half that lets it be
            counted, ``WAITS`` if none yet does.
        alone, alone_at: what is counted without another half, and the half that came when it was.
        forgotten: joined halves that are no longer kept. crowded_out: how many of ``alone`` went for want of room.
    """

    pair_client: list[int] = field(default_factory=list)
    pair_server: list[int] = field(default_factory=list)
    more_client: list[int] = field(default_factory=list)
    more_server: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    repeated_of: list[int] = field(default_factory=list)
    repeated_at: list[int] = field(default_factory=list)
    alone: list[int] = field(default_factory=list)
    alone_at: list[int] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    crowded_out: int = 0

    def pair(self, client: int, server: int) -> None:
        """Note the two halves of a call."""
        self.pair_client.append(client)
        self.pair_server.append(server)

    def more(self, client: int, server: int) -> None:
        """Note one more server's half of a call."""
        self.more_client.append(client)
        self.more_server.append(server)

    def repeat(self, handle: int, first: int, at: int) -> None:
        """Note a client's half that came again."""
        self.repeated.append(handle)
        self.repeated_of.append(first)
        self.repeated_at.append(at)

    def leave_alone(self, handles: list[int], at: int) -> None:
        """Note halves that are counted without another one."""
        self.alone += handles
        self.alone_at += [at] * len(handles)


@dataclass(slots=True)
class Calls:
    """Calls of one tenant by pair key.

    Attributes:
        clients: handle of a client's half that waits, or those of it and its repeats; ``~handle`` of one that was
            joined, kept for repeats and further servers' halves.
        servers: handle of a server's half that waits, or those of several.
        held: how many halves that is.
    """

    clients: dict[int, int | list[int]] = field(default_factory=dict)
    servers: dict[int, int | list[int]] = field(default_factory=dict)
    held: int = 0

    def meet(self, halves: Iterable[tuple[int, int, bool, bool]], limit: int, met: Met) -> None:
        """Take ``(handle, key, is_server, is_late)`` of new halves, in the order of the log."""
        clients, servers = self.clients, self.servers
        for handle, key, is_server, is_late in halves:
            # First what nearly always happens, in as few steps as can be: a hundred thousand of these come in a second.
            if is_server:
                client = clients.get(key)
                if type(client) is int and client >= 0:
                    clients[key] = ~client
                    met.pair_client.append(client)
                    met.pair_server.append(handle)
                    continue
                self._take_server(handle, key, is_late, client, met)
            else:
                server = servers.pop(key, None)
                if type(server) is int and not is_late:
                    clients[key] = ~handle
                    met.pair_client.append(handle)
                    met.pair_server.append(server)
                    continue
                self._take_client(handle, key, is_late, server, met)
            if self.held > limit:
                self._make_room(handle, limit, met)

    def _take_server(self, handle: int, key: int, is_late: bool, client: int | list[int] | None, met: Met) -> None:
        if client is None:
            if is_late:
                met.leave_alone([handle], handle)
                return
            first = self.servers.setdefault(key, handle)
            if first != handle:
                self.servers[key] = [*handles_of(first), handle]
            self.held += 1
        elif isinstance(client, list):
            first, *repeats = client
            met.pair(first, handle)
            for repeat in repeats:
                met.repeat(repeat, first, handle)
            self.held -= len(repeats)
            self.clients[key] = ~first
        else:
            met.more(~client, handle)

    def _take_client(self, handle: int, key: int, is_late: bool, server: int | list[int] | None, met: Met) -> None:
        if server is None:
            client = self.clients.get(key)
            if client is not None:
                self._take_repeat(handle, key, client, met)
            elif is_late:
                met.leave_alone([handle], handle)
            else:
                self.clients[key] = handle
                self.held += 1
            return
        first, *others = handles_of(server)
        met.pair(handle, first)
        for other in others:
            met.more(handle, other)
        self.held -= 1 + len(others)
        if not is_late:  # else its window has closed: nothing of it is kept
            self.clients[key] = ~handle
            self.held += 1

    def _take_repeat(self, handle: int, key: int, client: int | list[int], met: Met) -> None:
        if isinstance(client, int) and client < 0:
            met.repeat(handle, ~client, handle)
            return
        waiting = handles_of(client)
        met.repeat(handle, waiting[0], WAITS)
        self.clients[key] = [*waiting, handle]
        self.held += 1

    def _make_room(self, at: int, limit: int, met: Met) -> None:
        """Forget joined halves; where that is not enough, let the oldest go that wait."""
        wanted = limit - limit // _FREED_SHARE
        joined = [key for key, client in self.clients.items() if isinstance(client, int) and client < 0]
        for key in joined:
            met.forgotten.append(~self.clients.pop(key))  # type: ignore[operator]
        self.held -= len(joined)
        if self.held <= wanted:
            return
        # Dicts keep the order in which keys came: the oldest calls of each side are at the front.
        most = self.held - wanted
        oldest = [
            (handles_of(value), key, calls)
            for calls in (self.clients, self.servers)
            for key, value in islice(calls.items(), most)
        ]
        for handles, key, calls in sorted(oldest, key=lambda entry: entry[0][0]):
            if self.held <= wanted:
                break
            del calls[key]
            met.leave_alone(handles, at)
            met.crowded_out += len(handles)
            self.held -= len(handles)

    def let_go(self, keys: Iterable[int], are_servers: Iterable[bool], met: Met) -> None:
        """Give up calls of which a half is held: what waits goes alone, what was joined is forgotten."""
        held = len(met.alone) + len(met.forgotten)
        for key, is_server in zip(keys, are_servers, strict=True):
            value = (self.servers if is_server else self.clients).pop(key, None)
            if isinstance(value, int) and value < 0:
                met.forgotten.append(~value)
            elif value is not None:
                met.alone += handles_of(value)
        self.held -= len(met.alone) + len(met.forgotten) - held


def handles_of(value: int | list[int]) -> list[int]:
    """Return the handles of a key that wait."""
    return value if isinstance(value, list) else [value]
