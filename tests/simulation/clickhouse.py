"""A simulated ClickHouse, as the sinks know it: tokens of past inserts, rows by identity, faults."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

TOKENS_REMEMBERED = 100
"""`non_replicated_deduplication_window` of a table."""


@dataclass(slots=True)
class Store:
    """What the server holds: per table the messages inserted, in order, and the tokens of past inserts."""

    inserted: dict[str, list[bytes]] = field(default_factory=dict)
    tokens: dict[str, OrderedDict[str, None]] = field(default_factory=dict)
    inserts: int = 0
    repeats: int = 0

    def insert(self, table: str, values: list[bytes], token: str) -> None:
        """Insert, unless an insert of that token was taken before: the rows are not looked at then."""
        self.inserts += 1
        seen = self.tokens.setdefault(table, OrderedDict())
        if token in seen:
            self.repeats += 1
            return
        seen[token] = None
        while len(seen) > TOKENS_REMEMBERED:
            seen.popitem(last=False)
        self.inserted.setdefault(table, []).extend(values)


def fault(kind: str) -> Exception:
    """Return the error that the client raises."""
    if kind == "full":
        return DatabaseError("Code: 243. DB::Exception: Cannot reserve space: not enough space (NOT_ENOUGH_SPACE)")
    if kind == "busy":
        return DatabaseError("Code: 252. DB::Exception: Too many parts (TOO_MANY_PARTS)")
    return OperationalError("Connection refused")


class SimulatedClient:
    """What `PartitionWriter` uses of a clickhouse-connect client."""

    def __init__(self, insert: Any) -> None:
        self.server_settings: dict[str, Any] = {}
        self._insert = insert

    def insert_arrow(self, table: str, arrow: Any, database: str, settings: dict[str, Any]) -> None:
        """Insert a block; see `Process.insert`."""
        self._insert(table, arrow, str(settings["insert_deduplication_token"]))
