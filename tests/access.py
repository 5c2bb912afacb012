"""Who may use the API, for tests: records in memory, a clock that stands, hashes that cost nothing."""

from collections.abc import Callable
from typing import Any

import msgspec
from argon2 import PasswordHasher
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from api.security.access import Access
from api.security.api_keys import new_key
from api.security.directory import Account
from api.security.passwords import Passwords
from api.security.principal import Role
from api.security.tokens import OwnTokens
from schemas.access_records import ACCOUNT, API_KEY, Apply, RecordsUnavailable, record_key
from schemas.audit import AuditRecord
from schemas.ids import TenantId
from schemas.settings import ApiSettings, LimitSettings

PATIENCE_S = 300
"""For whatever has no say in what is tested: the machine may be busy."""
NOW_MS = 1_800_000_000_000
PASSWORD = "correct horse battery staple"
HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
SIGNING_KEY = ec.generate_private_key(ec.SECP256R1())
PEM = bytes(SIGNING_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def patient_limits(**own: int) -> LimitSettings:
    """Return limits that end nothing, however busy the machine is, but for those that a test asks for."""
    rates = {"logins_per_minute": 100_000, "principal_per_minute": 100_000, "tenant_per_minute": 100_000}
    names = ("body_timeout_s", "header_timeout_s", "request_timeout_s", "stall_timeout_s")
    return LimitSettings(**rates | dict.fromkeys(names, PATIENCE_S) | own)


class MemoryControlLog:
    """A log that any number of `Access` share, as API processes do.

    Attributes:
        is_away: writes fail. is_caught_up: what was there has been read.
    """

    def __init__(self) -> None:
        self.records: list[tuple[str, str, str, bytes | None]] = []
        self.followers: list[Apply] = []
        self.is_away = False
        self.is_caught_up = True

    async def start(self, apply: Apply) -> None:
        self.followers.append(apply)
        for record in self.records:
            apply(*record)

    async def wait_caught_up(self) -> None:
        assert self.is_caught_up

    async def write(self, tenant: str, kind: str, record_id: str, value: bytes | None) -> None:
        if self.is_away:
            raise RecordsUnavailable("away")
        record_key(tenant, kind, record_id)
        self.records.append((tenant, kind, record_id, value))
        for apply in self.followers:
            apply(tenant, kind, record_id, value)

    async def stop(self) -> None: ...


class MemoryAuditLog:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []

    async def start(self) -> None: ...

    def take(self, record: AuditRecord) -> None:
        self.records.append(record)

    async def stop(self) -> None: ...

    def told(self) -> list[tuple[str, str, str]]:
        """Return actor, action and outcome of each."""
        return [(one.actor, one.action, one.outcome) for one in self.records]


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def now_ms(self) -> int:
        return self.ms

    def pass_s(self, seconds: float) -> None:
        self.ms += int(seconds * 1_000)


class Doors:
    """An `Access` with what it stands on.

    Attributes:
        shown: the first administrator, as told to the operator: tenant, account, one-time password.
    """

    def __init__(
        self, settings: ApiSettings | None = None, log: MemoryControlLog | None = None, now_ms: Any = None
    ) -> None:
        self.log, self.audit, self.clock = log or MemoryControlLog(), MemoryAuditLog(), Clock()
        self.shown: list[tuple[str, str, str]] = []
        show: Callable[[str, str, str], None] = lambda *told: self.shown.append(told)  # noqa: E731
        self.access = Access(
            settings or ApiSettings(),
            OwnTokens(PEM),
            self.log,
            self.audit,
            now_ms or self.clock.now_ms,
            show,
            Passwords(HASHER),
        )

    def _put(self, tenant: str, kind: str, record_id: str, record: msgspec.Struct) -> None:
        value = msgspec.json.encode(record)
        self.log.records.append((tenant, kind, record_id, value))
        for apply in self.log.followers:
            apply(tenant, kind, record_id, value)

    def account(self, tenant: str, name: str = "ann", role: Role = Role.ADMIN, **changes: Any) -> None:
        """Have an account, with `PASSWORD`."""
        account = Account(name, tenant, int(role), HASHER.hash(PASSWORD), self.clock.ms // 1_000)
        self._put(tenant, ACCOUNT, name, msgspec.structs.replace(account, **changes))

    def key(self, tenant: str, role: Role = Role.VIEWER, **changes: Any) -> str:
        """Have an API key and return it."""
        key, record = new_key(TenantId(tenant), "test", role, self.clock.ms // 1_000)
        self._put(tenant, API_KEY, record.id, msgspec.structs.replace(record, **changes))
        return key

    def headers(self, tenant: str, role: Role = Role.VIEWER) -> dict[str, str]:
        """Have an API key and return the header that carries it."""
        return {"X-API-Key": self.key(tenant, role)}
