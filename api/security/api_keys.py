"""API keys for SIEMs, dashboards and pipelines: ``sgd_<id>_<secret>``, shown once, stored as a hash. Pure.

The secret is 256 random bits, so that its plain SHA-256 cannot be guessed back: a slow hash would add nothing.
"""

import hashlib
import hmac
import re
import secrets

import msgspec

from api.security.principal import How, Principal, Refused, Role
from schemas.ids import TenantId

PREFIX = "sgd"
"""Lets secret scanners find a key that was committed."""
_KEY = re.compile(rf"{PREFIX}_([0-9a-f]{{16}})_([A-Za-z0-9_-]{{43}})", re.ASCII)


class ApiKeyRecord(msgspec.Struct, frozen=True):
    """What is stored of a key. ``expires_s`` is a Unix time, 0 for never."""

    id: str
    tenant: str
    name: str
    role: int
    secret_sha256: str
    created_s: int
    expires_s: int = 0


def new_key(tenant: TenantId, name: str, role: Role, now_s: int, expires_s: int = 0) -> tuple[str, ApiKeyRecord]:
    """Return a key as its owner gets it, once, and what is stored of it."""
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    record = ApiKeyRecord(key_id, tenant, name, int(role), _hash(secret), now_s, expires_s)
    return f"{PREFIX}_{key_id}_{secret}", record


def is_key(credential: str) -> bool:
    """Say whether a credential claims to be a key of ours."""
    return credential.startswith(f"{PREFIX}_")


def key_id(credential: str) -> str:
    """Return the id in a key.

    Raises:
        Refused: it is none.
    """
    match = _KEY.fullmatch(credential)
    if match is None:
        raise Refused("malformed API key")
    return match[1]


def verify_key(credential: str, record: ApiKeyRecord | None, now_s: int) -> Principal:
    """Return whose key this is.

    Raises:
        Refused: unknown, wrong, or expired.
    """
    match = _KEY.fullmatch(credential)
    if match is None:
        raise Refused("malformed API key")
    # Compared also where the key is unknown, so that the time tells nothing.
    is_right = hmac.compare_digest(_hash(match[2]), record.secret_sha256 if record is not None else _hash(""))
    if record is None or not is_right or record.id != match[1]:
        raise Refused("unknown API key")
    if record.expires_s and now_s >= record.expires_s:
        raise Refused("expired API key")
    return Principal(record.id, TenantId(record.tenant), Role(record.role), How.API_KEY, record.id, record.expires_s)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
