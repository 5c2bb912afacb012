"""Passwords: Argon2id (RFC 9106), in threads, a few at a time. A wrong one takes as long as one that nobody has."""

import asyncio
import secrets

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

MIN_CHARACTERS = 12
MAX_BYTES = 1_024
"""A longer one costs more to read than any secret is worth."""
AT_ONCE = 2
"""Hashes under way: each takes 64 MiB and four lanes for some tens of milliseconds."""

_ALPHABET = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Letters and digits that nobody mistakes for each other."""


def one_time_password() -> str:
    """Return a password for a first login: 24 characters, 139 bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(24))


def complaint_about(password: str, account: str) -> str | None:
    """Return why a password cannot be taken, ``None`` if it can (NIST SP 800-63B 3.1.1: length, no composition)."""
    if len(password) < MIN_CHARACTERS:
        return f"a password has at least {MIN_CHARACTERS} characters"
    if len(password.encode()) > MAX_BYTES:
        return f"a password has at most {MAX_BYTES} bytes"
    if len(set(password)) < 5 or account.lower() in password.lower():
        return "a password is neither a few characters repeated nor does it hold the name of the account"
    return None


class Passwords:
    """Hashes and verifies.

    Args:
        hasher: by default with the parameters of RFC 9106's second recommendation (t=3, 64 MiB, p=4).
    """

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=4, type=Type.ID)
        self._nobodys = self._hasher.hash(secrets.token_hex(16))
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def hash(self, password: str) -> str:
        """Return what is stored of a password."""
        async with self._turn:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Say whether a password is the one stored; takes as long for nobody's, ``None``."""
        if len(password.encode()) > MAX_BYTES:
            return False
        async with self._turn:
            is_right = await asyncio.to_thread(self._matches, stored or self._nobodys, password)
        return is_right and stored is not None

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    def must_be_hashed_anew(self, stored: str) -> bool:
        """Say whether a hash was made with weaker parameters than those of today."""
        return self._hasher.check_needs_rehash(stored)
