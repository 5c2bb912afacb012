"""Spans of time that counts and series are summed over. Pure."""

from typing import Annotated

from fastapi import Query

from api.problems import invalid_parameter

LENGTHS_MS = {
    "10s": 10_000,
    "1m": 60_000,
    "5m": 300_000,
    "15m": 900_000,
    "1h": 3_600_000,
    "6h": 21_600_000,
    "1d": 86_400_000,
    "7d": 604_800_000,
}
MAX_BUCKETS = 1_000
_AIM = 200
"""Without a length asked for: the shortest that gives no more."""

Bucket = Annotated[
    str | None,
    Query(
        description=f"Length of a bucket: {', '.join(LENGTHS_MS)}. Without it the shortest that gives at most {_AIM}; "
        f"{MAX_BUCKETS:,} are the most.",
        examples=["5m"],
        max_length=16,
    ),
]


def bucket_ms_of(bucket: str | None, since_ms: int, until_ms: int) -> int:
    """Return the length of a bucket in ms.

    Raises:
        Problem: 422 if it is none of the known ones, or the range would have too many.
    """
    if bucket is None:
        fits = (ms for ms in LENGTHS_MS.values() if _count(ms, since_ms, until_ms) <= _AIM)
        length_ms = next(fits, LENGTHS_MS["7d"])
    elif bucket in LENGTHS_MS:
        length_ms = LENGTHS_MS[bucket]
    else:
        raise invalid_parameter("bucket", f"use one of {', '.join(LENGTHS_MS)}")
    if _count(length_ms, since_ms, until_ms) > MAX_BUCKETS:
        raise invalid_parameter("bucket", f"the range has more than {MAX_BUCKETS:,}: ask for longer ones, or for less")
    return length_ms


def starts_of(bucket_ms: int, since_ms: int, until_ms: int) -> range:
    """Return the starts of the buckets that ``[since_ms, until_ms)`` touches: multiples of their length."""
    return range(since_ms // bucket_ms * bucket_ms, until_ms, bucket_ms)


def _count(bucket_ms: int, since_ms: int, until_ms: int) -> int:
    return len(starts_of(bucket_ms, since_ms, until_ms))
