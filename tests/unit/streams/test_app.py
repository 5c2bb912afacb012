"""What the worker hands to its parts."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

import streams.app
from schemas.settings import ClickHouseSettings, Settings
from schemas.topics import INTERNAL_AND_PUBLIC
from streams.app import Worker


@pytest.mark.parametrize(
    ("clickhouse", "database"),
    [
        ({"dsn": SecretStr("http://ana:secret@127.0.0.1:1/prod")}, "prod"),
        ({"dsn": SecretStr("http://ana:secret@127.0.0.1:1"), "database": "other"}, "other"),
    ],
)
async def test_sinks_write_into_the_database_that_the_api_reads(
    settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, clickhouse: dict[str, Any], database: str
) -> None:
    given: list[str] = []
    monkeypatch.setattr(streams.app, "register_sinks", lambda app, connect, database, *_, **__: given.append(database))
    settings = settings_for("127.0.0.1:1", clickhouse=ClickHouseSettings(**clickhouse))
    topics = [settings.topics.name(topic.role) for topic in INTERNAL_AND_PUBLIC]
    counts = dict.fromkeys([*topics, *(flow.topic for flow in settings.flows)], 3)
    Worker(settings, lambda: None)._build(counts)  # type: ignore[arg-type, return-value]
    assert given == [database]
