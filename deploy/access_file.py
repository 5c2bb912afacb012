"""Accounts, keys and revocations of one process in one file: for `drift run`, whose broker forgets everything."""

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

from schemas.access_records import ACCESS_KINDS, Apply, RecordsUnavailable, record_key
from schemas.errors import ConfigurationError

NAME = "accounts.jsonl"


class FileControlLog:
    """`schemas.access_records.ControlLog` in a file that only its owner may read: one JSON line a record.

    The folder's lock (`deploy.embedded.lock_folder`) keeps other processes away.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._apply: Apply | None = None
        self._records: dict[tuple[str, str, str], bytes] = {}
        self._one_at_a_time = asyncio.Lock()

    @property
    def is_caught_up(self) -> bool:
        """Whether the file has been read."""
        return self._apply is not None

    async def wait_caught_up(self) -> None:
        """Return: `start` has read all."""

    async def start(self, apply: Apply) -> None:
        """Read the file, and write it anew without what is obsolete.

        Raises:
            ConfigurationError: it cannot be read or written.
        """
        try:
            lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        except OSError as error:
            raise ConfigurationError(
                f"{self._path} cannot be read ({error.strerror}): give it back to its owner"
            ) from None
        for number, line in enumerate(lines):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                if number < len(lines) - 1:  # the last line may be one that a power cut left half
                    raise ConfigurationError(
                        f"{self._path} is damaged in line {number + 1}: mend it, or delete it for a new account"
                    ) from None
        try:
            await asyncio.to_thread(self._write_anew)
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be written ({error.strerror})") from None
        for (tenant, kind, record_id), value in self._records.items():
            apply(tenant, kind, record_id, value)
        self._apply = apply

    def _take(self, line: dict[str, Any]) -> None:
        key = str(line["tenant"]), str(line["kind"]), str(line["id"])
        if key[1] not in ACCESS_KINDS:
            raise ValueError(key[1])
        if line["value"] is None:
            self._records.pop(key, None)
        else:
            self._records[key] = base64.b64decode(line["value"], validate=True)

    def _write_anew(self) -> None:
        new = self._path.with_suffix(".new")
        new.unlink(missing_ok=True)
        lines = (_line(*key, value) for key, value in self._records.items())
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)

    async def write(self, tenant: str, kind: str, record_id: str, value: bytes | None) -> None:
        """Append a record; see `ControlLog`."""
        record_key(tenant, kind, record_id)
        assert self._apply is not None
        async with self._one_at_a_time:
            try:
                await asyncio.to_thread(self._append, _line(tenant, kind, record_id, value))
            except OSError as error:
                raise RecordsUnavailable(f"the file of accounts cannot be written ({error.strerror})") from None
            self._apply(tenant, kind, record_id, value)

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    async def stop(self) -> None:
        """Nothing is held open."""


def _line(tenant: str, kind: str, record_id: str, value: bytes | None) -> bytes:
    encoded = None if value is None else base64.b64encode(value).decode()
    return json.dumps({"tenant": tenant, "kind": kind, "id": record_id, "value": encoded}).encode() + b"\n"
