"""One line of the audit log: who did what to whom, from where, and whether it was allowed. JSON on `drift-audit`."""

from typing import Protocol

import msgspec

from schemas.errors import WireFormatError

AUDIT_VERSION = 1


class AuditRecord(msgspec.Struct, frozen=True):
    """What happened. Never holds a secret.

    Attributes:
        id: unique; the same record may come twice. time_ms: Unix epoch UTC, of the API's clock.
        actor: who did it, as ``login:NAME``, ``api-key:ID``, ``provider:SUBJECT``, ``operator`` (command line), or
            ``login:NAME`` of one who tried to be.
        action: such as ``session.login``, ``account.create``. target: the account or key it was done to.
        outcome: ``done`` or ``refused``. detail: why, or what changed.
        address: of the caller. request_id: the `X-Request-Id` of the answer.
    """

    id: str
    tenant: str
    time_ms: int
    actor: str
    action: str
    outcome: str
    target: str = ""
    detail: str = ""
    address: str = ""
    request_id: str = ""
    v: int = AUDIT_VERSION


def encode_audit(record: AuditRecord) -> bytes:
    """Return the message's value."""
    return msgspec.json.encode(record)


def decode_audit(value: bytes) -> AuditRecord:
    """Read a message's value.

    Raises:
        WireFormatError: it is no audit record, or of a version this release does not know.
    """
    try:
        record = msgspec.json.decode(value, type=AuditRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireFormatError(f"audit record cannot be read: {error}") from error
    if record.v != AUDIT_VERSION:
        raise WireFormatError(f"audit record of version {record.v}; this worker reads {AUDIT_VERSION}: update it")
    return record


class AuditLog(Protocol):
    """Where audit records go."""

    async def start(self) -> None:
        """Begin to send."""
        ...

    def take(self, record: AuditRecord) -> None:
        """Keep a record until it is where it belongs; never waits."""
        ...

    async def stop(self) -> None:
        """Send what is left, for a moment."""
        ...
