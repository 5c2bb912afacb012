"""Halves of calls for tests: what a client's and a server's span say, as rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from schemas.flow import Flow
from tests.builders import make_flow

UNKNOWN_PEER = "ext:unknown"


class Half(NamedTuple):
    """A flow and the key that joins it to another one; -1: none."""

    flow: Flow
    pair: int = -1


def client_half(pair: int, time_ms: int, src: str = "shop/web", guess: str = "ext:cart", **changes: Any) -> Half:
    """Return what a caller's span says: who called; whom, it can only guess."""
    values: dict[str, Any] = {"latency_us": 2_000, "errors": 0, "reporter": "client", **changes}
    return Half(make_flow(time_ms, src=src, dst=guess, **values), pair)


def server_half(pair: int, time_ms: int, dst: str = "shop/cart", **changes: Any) -> Half:
    """Return what the answering span says: who answered, not whom."""
    values: dict[str, Any] = {"latency_us": 1_000, "errors": 0, "reporter": "server", "port": None, **changes}
    return Half(make_flow(time_ms, src=UNKNOWN_PEER, dst=dst, **values), pair)


def flows_of(halves: Sequence[Half]) -> tuple[list[Flow], list[int]]:
    """Return flows and pair keys."""
    return [half.flow for half in halves], [half.pair for half in halves]
