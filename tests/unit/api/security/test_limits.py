"""Counting in Redis, and without it."""

from typing import Any

import limits.aio.strategies
import pytest
from limits.errors import StorageError

from api.problems import Problem
from api.security import limits as subject
from api.security.limits import Limits
from api.security.principal import How, Principal, Role
from schemas.errors import ConfigurationError
from schemas.ids import TenantId
from schemas.settings import LimitSettings

ANN = Principal("ann", TenantId("acme"), Role.VIEWER, How.LOGIN, "t")


class FakeRedis(limits.aio.strategies.MovingWindowRateLimiter):
    """Counts in a dictionary, or is away."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.is_away, self.asked = False, 0

    async def hit(self, item: Any, *identifiers: str, cost: int = 1) -> bool:
        self.asked += 1
        if self.is_away:
            raise StorageError(ConnectionError("10.0.0.7 secret"))
        key = item.key_for(*identifiers)
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key] <= int(item.amount)

    async def get_window_stats(self, item: Any, *identifiers: str) -> Any:
        return limits.WindowStats(1_020, 0)


async def test_redis_counts_for_all_processes_and_each_for_itself_while_it_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    redis, now_s = FakeRedis(), [1_000.0]
    monkeypatch.setattr(subject, "_redis", lambda storage: redis)
    settings = LimitSettings(principal_per_minute=2, storage="redis://10.0.0.7")
    one, another = (Limits(settings, lambda: now_s[0]) for _ in range(2))
    await one.count_request(ANN)
    await another.count_request(ANN)
    with pytest.raises(Problem) as raised:
        await one.count_request(ANN)
    assert (raised.value.status, raised.value.headers["Retry-After"]) == (429, "20")

    redis.is_away = True
    await one.count_request(ANN)  # of this process it is the first
    asked = redis.asked
    await one.count_request(ANN)
    with pytest.raises(Problem):
        await one.count_request(ANN)
    assert redis.asked == asked  # not asked with every request
    assert [record.message for record in caplog.records if record.name == "api"] == [
        "Redis is away (ConnectionError): rates are limited per process"
    ]

    redis.is_away, redis.counts = False, {}
    now_s[0] += subject._RETRY_REDIS_S
    await one.count_request(ANN)
    assert redis.counts


def test_redis_without_its_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("limits")
    try:
        import redis  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: F401
    except ImportError:
        with pytest.raises(ConfigurationError, match="pip install"):
            Limits(LimitSettings(storage="redis://127.0.0.1:1"), lambda: 0.0)
    with pytest.raises(ValueError, match="storage"):
        LimitSettings(storage="memcached://x")


async def test_addresses_of_one_ipv6_network_are_one_caller() -> None:
    one = Limits(LimitSettings(logins_per_minute=2), lambda: 0.0)
    for address in ("2001:db8::1", "2001:db8::ffff:2"):
        await one.count_login(address)
    with pytest.raises(Problem):
        await one.count_login("2001:db8::3")
    await one.count_login("2001:db8:0:1::1")
    for address in ("192.0.2.1", "::ffff:192.0.2.1"):
        await one.count_login(address)
    with pytest.raises(Problem):
        await one.count_login("192.0.2.1")
    await one.count_login("192.0.2.2")
