"""Which answers say that a call failed: HTTP and gRPC codes, the same for all sources. Pure.

A client's own mistake (HTTP 4xx, gRPC NOT_FOUND, ...) is an answer, not a failure of the server.
"""

from schemas.flow import UNKNOWN
from streams.sources.draft import Words

HTTP_ERROR_FROM = 500

_GRPC_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""By number, from 0 (grpc doc/statuscodes.md)."""
_FAILED = frozenset({2, 4, 8, 12, 13, 14, 15})


def _spellings(code: int) -> tuple[int | str, ...]:
    name = _GRPC_CODES[code]
    return code, str(code), name, "OK" if not code else name.title().replace("_", "")


GRPC_MEANINGS: dict[int | str, int] = {
    spelling: int(code in _FAILED) for code in range(len(_GRPC_CODES)) for spelling in _spellings(code)
}
"""1 for codes that are the server's failure, 0 for other answers; by number, its text, and names in both spellings."""
GRPC_OK: frozenset[int | str] = frozenset(_spellings(0))
GRPC_FAILURES = Words({**dict.fromkeys((None, "", "-"), UNKNOWN), **GRPC_MEANINGS}, 0)
"""The same of what may be absent; whatever else it is, it is an answer."""
