"""The writer: in order, in batches, repeated until in, nothing skipped in silence."""

from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, ProgrammingError

from schemas.errors import ConfigurationError
from streams.metrics import Metrics
from streams.sinks.faults import Fault, classify, describe
from streams.sinks.rows import graph_rows
from streams.sinks.writer import LONGEST_BACKOFF_S, Message, PartitionWriter, Poison, deduplication_token, group_inserts
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, make_window, messages_of


class FakeClient:
    """Keeps inserts by token like ClickHouse; ``failures`` are raised first, one an attempt."""

    def __init__(self, *failures: Exception, after_write: bool = False, refuses: str = "") -> None:
        self.server_settings: dict[str, Any] = {}
        self.failures = list(failures)
        self.after_write = after_write
        self.refuses = refuses
        self.attempts: list[tuple[str, dict[str, Any]]] = []
        self.inserted: dict[str, tuple[str, Any]] = {}

    def insert_arrow(self, table: str, arrow: Any, database: str, settings: dict[str, Any]) -> None:
        self.attempts.append((table, settings))
        if self.failures and not self.after_write:
            raise self.failures.pop(0)
        if self.refuses and "src" in arrow.column_names and self.refuses in arrow.column("src").to_pylist():
            raise DatabaseError("no", code=53, name="TYPE_MISMATCH")
        self.inserted.setdefault(settings["insert_deduplication_token"], (table, arrow))
        if self.failures:
            raise self.failures.pop(0)

    def rows(self, table: str) -> list[dict[str, Any]]:
        return [row for name, arrow in self.inserted.values() if name == table for row in arrow.to_pylist()]


class Harness:
    """A writer with injected sleep, jitter and poison box."""

    def __init__(self, client: FakeClient, **options: Any) -> None:
        self.slept: list[float] = []
        self.poison: list[Poison] = []
        self.metrics = Metrics()
        self.writer = PartitionWriter(
            client,  # type: ignore[arg-type]
            "drift",
            "graph-windows",
            3,
            graph_rows,
            self._keep,
            self.metrics,
            sleep=self._sleep,
            jitter=lambda: 1.0,
            **options,
        )

    async def _sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)

    async def _keep(self, poison: Poison) -> None:
        self.poison.append(poison)

    def metric(self, name: str, table: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"table": table})


def _windows(count: int, edges: int = 2) -> list[Message]:
    windows = [
        make_window(HOUR_MS + i * MINUTE_MS, [{"src": f"s{i}-{e}", "dst": "d"} for e in range(edges)])
        for i in range(count)
    ]
    return messages_of(*windows, first_offset=100)


async def test_messages_of_one_fetch_become_one_insert_a_table_edges_first():
    client = FakeClient()
    written = await Harness(client).writer.write(_windows(5))
    assert written == 5 * 2 + 5
    assert [table for table, _ in client.attempts] == ["edges_1m", "windows"]
    assert [row["src"] for row in client.rows("edges_1m")] == [f"s{i}-{e}" for i in range(5) for e in range(2)]


async def test_every_insert_states_its_settings():
    client = FakeClient()
    await Harness(client).writer.write(_windows(1))
    for _, settings in client.attempts:
        assert settings["async_insert"] == 0
        assert settings["wait_end_of_query"] == 1
        assert settings["insert_deduplicate"] == 1
        assert settings["insert_deduplication_token"]


async def test_an_insert_lies_in_one_partition_and_under_the_row_limit():
    client = FakeClient()
    midnight = HOUR_MS + 60 * MINUTE_MS
    windows = [make_window(midnight + i * MINUTE_MS, [{"src": "a", "dst": "b"}]) for i in (-2, -1, 0)]
    await Harness(client).writer.write(messages_of(*windows))
    days = [
        {row["window_start"].date() for row in arrow.to_pylist()}
        for t, arrow in client.inserted.values()
        if t == "edges_1m"
    ]
    assert [len(day) for day in days] == [1, 1]
    parsed = [(message, graph_rows(message.value)) for message in _windows(7, edges=10)]
    sizes = [sum(len(r) for r in i.rows) for i in group_inserts(parsed, max_rows=25) if i.table.name == "edges_1m"]
    assert sizes == [20, 20, 20, 10]


async def test_a_failed_insert_is_repeated_with_the_same_token_and_growing_waits():
    errors = [OperationalError("gone"), DatabaseError("x", code=252), DatabaseError("x", code=243), OSError(28, "full")]
    client = FakeClient(*errors)
    harness = Harness(client)
    await harness.writer.write(_windows(1))
    tokens = [settings["insert_deduplication_token"] for table, settings in client.attempts if table == "edges_1m"]
    assert len(tokens) == 5
    assert len(set(tokens)) == 1
    assert harness.slept == [0.5, 1.0, 2.0, 4.0]
    assert harness.metric("drift_sink_retries_total", "edges_1m") == 4
    assert harness.metric("drift_clickhouse_rows_total", "edges_1m") == 2


async def test_waits_stop_growing_and_the_writer_never_gives_up_on_an_absent_server():
    harness = Harness(FakeClient(*[OperationalError("gone")] * 200))
    assert await harness.writer.write(_windows(1)) == 3
    assert harness.slept[-1] == max(harness.slept) == LONGEST_BACKOFF_S


async def test_an_answer_lost_after_the_write_does_not_write_twice():
    client = FakeClient(OperationalError("closed"), after_write=True)
    await Harness(client).writer.write(_windows(1))
    assert len(client.attempts) == 3
    assert len(client.rows("edges_1m")) == 2


async def test_a_message_that_cannot_be_read_is_set_aside_and_its_neighbours_are_written():
    client = FakeClient()
    harness = Harness(client)
    good = _windows(2)
    await harness.writer.write([good[0], Message(7, b"garbage"), *good[1:]])
    assert [(p.topic, p.partition, p.offset, p.value) for p in harness.poison] == [("graph-windows", 3, 7, b"garbage")]
    assert len(client.rows("edges_1m")) == 4
    assert len(client.rows("windows")) == 2


async def test_a_row_the_server_refuses_is_found_and_set_aside_alone():
    client = FakeClient(refuses="s5-1")
    harness = Harness(client)
    messages = _windows(9)
    written = await harness.writer.write(messages)
    assert [p.offset for p in harness.poison] == [messages[10].offset]
    assert {row["src"] for row in client.rows("edges_1m")} == {
        f"s{i}-{e}" for i in range(9) if i != 5 for e in range(2)
    }
    assert written == 8 * 2 + 9
    assert harness.slept == []


async def test_a_failing_dead_letter_stops_the_write():
    harness = Harness(FakeClient())

    async def broken(_: Poison) -> None:
        raise OSError("no broker")

    harness.writer._on_poison = broken
    with pytest.raises(OSError, match="no broker"):
        await harness.writer.write([Message(1, b"garbage")])


@pytest.mark.parametrize(("code", "word"), [(60, "drift migrate"), (516, "dsn"), (497, "grant"), (16, "drift migrate")])
async def test_what_only_an_operator_can_mend_is_said_once_and_clearly(code, word):
    client = FakeClient(DatabaseError("secret row data", code=code, name="SOME_NAME"))
    with pytest.raises(ConfigurationError, match=word) as caught:
        await Harness(client).writer.write(_windows(1))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(client.attempts) == 1


def test_errors_are_classified():
    for code in (159, 202, 209, 210, 241, 242, 243, 252, 319, 999, 999_999):
        assert classify(DatabaseError("x", code=code)) is Fault.RETRY, code
    assert classify(DatabaseError("Code: 27. DB::Exception: nope")) is Fault.POISON
    assert classify(ProgrammingError("client is closed")) is Fault.GIVE_UP
    assert classify(TypeError("a bug")) is Fault.GIVE_UP
    assert classify(ConnectionResetError()) is Fault.RETRY
    assert describe(DatabaseError("row: secret", code=27, name="CANNOT_PARSE")) == "CANNOT_PARSE (code 27)"


def test_a_token_names_bytes_offsets_table_and_partition():
    messages = [Message(1, b"ab"), Message(2, b"c")]
    base = deduplication_token("t", "p", "topic", 0, messages)
    assert base == deduplication_token("t", "p", "topic", 0, list(messages))
    others = [
        deduplication_token("u", "p", "topic", 0, messages),
        deduplication_token("t", "q", "topic", 0, messages),
        deduplication_token("t", "p", "topic2", 0, messages),
        deduplication_token("t", "p", "topic", 1, messages),
        deduplication_token("t", "p", "topic", 0, messages, epoch=1),
        deduplication_token("t", "p", "topic", 0, [Message(1, b"a"), Message(2, b"bc")]),
        deduplication_token("t", "p", "topic", 0, [Message(1, b"ab"), Message(3, b"c")]),
    ]
    assert len({base, *others}) == 1 + len(others)
