"""Who asks: a person or a program, always of one tenant, with one role."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from schemas.ids import TenantId


class Role(IntEnum):
    """What one may do; each includes those before it."""

    VIEWER = 1
    """Reads everything of its tenant."""
    OPERATOR = 2
    """Also changes what the tenant's pipeline does: whitelist, feedback, inventory, predictions that are kept."""
    ADMIN = 3
    """Also manages the tenant's accounts and keys."""

    @classmethod
    def of(cls, name: str) -> "Role":
        """Return the role of that name.

        Raises:
            KeyError: there is none.
        """
        return cls[name.upper()]


class How(StrEnum):
    """How one proved who one is."""

    LOGIN = "login"
    PROVIDER = "provider"
    API_KEY = "api-key"


@dataclass(frozen=True, slots=True)
class Principal:
    """One who is known.

    Attributes:
        subject: account or key, unique within its tenant and ``how``.
        credential_id: token or key by which it came: what a revocation names.
        expires_s: Unix time at which the credential ends; 0 never.
        family: of the login it comes from; stamp: of its account then; both empty where there is none.
        must_change: the password was given out once: it may do nothing but be replaced.
    """

    subject: str
    tenant: TenantId
    role: Role
    how: How
    credential_id: str
    expires_s: int = 0
    family: str = ""
    stamp: str = ""
    must_change: bool = False

    @property
    def name(self) -> str:
        """Return the name in logs and limits: never a secret."""
        return f"{self.how.value}:{self.subject}"


class Refused(Exception):
    """A credential that proves nothing. ``reason`` is for the log and the audit, never for the caller."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
