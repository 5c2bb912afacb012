"""How much one caller may ask: requests a minute by principal, tenant and address, and requests under way by tenant.

Counts are this process's, or Redis's for all processes. While Redis is away each process counts for itself: that lets
more through than it should, and nobody is shut out.
"""

import ipaddress
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import limits.aio.storage
import limits.aio.strategies
import limits.storage
import limits.strategies
from limits.errors import ConfigurationError as MissingLibrary
from limits.errors import StorageError

from api.problems import Problem
from api.security.principal import Principal
from schemas.errors import ConfigurationError
from schemas.settings import LimitSettings

log = logging.getLogger("api")

_RETRY_REDIS_S = 30


def too_many(detail: str, retry_after_s: float) -> Problem:
    """Return the 429."""
    wait_s = max(1, -int(-retry_after_s // 1))
    return Problem(429, "too-many-requests", "Too many requests", detail, headers={"Retry-After": str(wait_s)})


class Limits:
    """Counts requests.

    Args:
        now_s: Unix time.

    Raises:
        ConfigurationError: Redis is configured and its library is not installed.
    """

    def __init__(self, settings: LimitSettings, now_s: Callable[[], float]) -> None:
        self._settings, self._now_s = settings, now_s
        self._local = limits.strategies.MovingWindowRateLimiter(limits.storage.MemoryStorage())
        self._shared = _redis(settings.storage.get_secret_value())
        self._retry_redis_s = 0.0
        self._is_away = False
        self._under_way: Counter[str] = Counter()

    async def count_request(self, principal: Principal) -> None:
        """Count a request.

        Raises:
            Problem: 429, with the time to wait.
        """
        settings = self._settings
        await self._hit(settings.principal_per_minute, "principal", principal.tenant, principal.name)
        await self._hit(settings.tenant_per_minute, "tenant", principal.tenant)

    async def count_login(self, address: str) -> None:
        """Count a try to prove who one is, or a proof that was none.

        Raises:
            Problem: 429, with the time to wait.
        """
        await self._hit(self._settings.logins_per_minute, "login", _network(address))

    async def _hit(self, per_minute: int, *names: str) -> None:
        item = limits.RateLimitItemPerMinute(per_minute)
        if self._shared is not None and (not self._is_away or self._now_s() >= self._retry_redis_s):
            try:
                is_within = await self._shared.hit(item, *names)
                reset_s = 0.0 if is_within else (await self._shared.get_window_stats(item, *names)).reset_time
                self._is_away = False
                return self._judge(is_within, reset_s)
            except StorageError as error:
                if not self._is_away:
                    log.warning("Redis is away (%s): rates are limited per process", type(error.storage_error).__name__)
                self._is_away, self._retry_redis_s = True, self._now_s() + _RETRY_REDIS_S
        is_within = self._local.hit(item, *names)
        return self._judge(is_within, 0.0 if is_within else self._local.get_window_stats(item, *names).reset_time)

    def _judge(self, is_within: bool, reset_s: float) -> None:
        if not is_within:
            wait_s = min(max(reset_s - self._now_s(), 1.0), 60.0)
            raise too_many("The limit of requests a minute is reached.", wait_s)

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Hold a place among the tenant's requests under way.

        Raises:
            Problem: 429, there is none.
        """
        if self._under_way[tenant] >= self._settings.concurrent_per_tenant:
            raise too_many("Too many requests of this tenant are under way.", 1)
        self._under_way[tenant] += 1
        try:
            yield
        finally:
            self._under_way[tenant] -= 1
            if not self._under_way[tenant]:
                del self._under_way[tenant]


def _network(address: str) -> str:
    """Return whom an address stands for: a /64 in IPv6, where one caller has as many addresses as it likes."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _redis(storage: str) -> limits.aio.strategies.MovingWindowRateLimiter | None:
    if storage == "memory":
        return None
    try:
        redis = limits.aio.storage.RedisStorage(
            f"async+{storage}",
            wrap_exceptions=True,
            implementation="redispy",
            socket_timeout=1,
            socket_connect_timeout=1,
        )
    except MissingLibrary as error:
        raise ConfigurationError(
            'api.limits.storage names Redis, whose library is not installed: pip install "secureguard-drift[redis]"'
        ) from error
    return limits.aio.strategies.MovingWindowRateLimiter(redis)
