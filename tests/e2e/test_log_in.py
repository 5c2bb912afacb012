"""`drift run` as a new user meets it: log in with what it prints, and find again what was there after a restart."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.brokers.process import last_lines
from tests.e2e.pipeline import GRACE_MS, until

pytestmark = [pytest.mark.kafka, pytest.mark.e2e, pytest.mark.timeout(3600)]

DEADLINE_S = 600.0
NEW = "a wholly different phrase"
TENANT = "online-boutique"
_API = re.compile(r"^API +(http://\S+)/openapi\.json", re.MULTILINE)
_PASSWORD = re.compile(r"^Account +admin of tenant online-boutique, one-time password (\S+)$", re.MULTILINE)


@asynccontextmanager
async def drift_run(folder: Path, log: Path) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """Run it, and stop it as Ctrl-C does; gives a client and what was printed."""
    command = [sys.executable, "-m", "deploy.cli", "run", "--no-sample", "--data", str(folder)]
    command += ["--api-port", "0", "--kafka-port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1", "DRIFT_WORKER__GRACE_MS": str(GRACE_MS)},
            start_new_session=True,
        )
    try:

        def is_up() -> bool:
            assert process.poll() is None, f"drift run did not start: {last_lines(log)}"
            return "No sample" in log.read_text(encoding="utf-8", errors="replace")

        await until(is_up, "drift run is up", DEADLINE_S)
        printed = log.read_text(encoding="utf-8")
        found = _API.search(printed)
        assert found is not None, printed
        async with httpx.AsyncClient(base_url=found[1], timeout=DEADLINE_S) as client:
            yield client, printed
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, DEADLINE_S) == 0, last_lines(log)
    finally:
        process.kill()
        process.wait()


async def log_in(client: httpx.AsyncClient, password: str, **more: str) -> httpx.Response:
    body = {"tenant": TENANT, "account": "admin", "password": password, **more}
    return await client.post("/v1/sessions", json=body)


def bearer(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def audit(client: httpx.AsyncClient, headers: dict[str, str]) -> list[dict[str, Any]]:
    answer = await client.get("/v1/audit-log", headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["records"]
    return found


async def test_one_logs_in_with_what_is_printed_and_all_of_it_survives_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with drift_run(folder, tmp_path / "first.log") as (client, printed):
        found = _PASSWORD.search(printed)
        assert found is not None, printed
        password = found[1]
        assert (await client.get("/v1/services")).status_code == 401
        answer = await client.get("/healthz")
        assert "server" not in answer.headers
        assert (await log_in(client, "wrong password")).status_code == 401
        headers = bearer(await log_in(client, password, new_password=NEW))
        made = await client.post("/v1/api-keys", json={"name": "siem"}, headers=headers)
        key = {"X-API-Key": made.json()["key"]}
        assert (await client.get("/v1/windows", headers=key)).json()["windows"] == []
        assert (await client.delete("/v1/sessions", headers=headers)).status_code == 204
    log = (tmp_path / "first.log").read_text(encoding="utf-8")
    assert log.count(password) == 1 and NEW not in log and made.json()["key"] not in log

    async with drift_run(folder, tmp_path / "second.log") as (client, printed):
        assert _PASSWORD.search(printed) is None and f"Account   of tenant {TENANT}" in printed
        assert (await client.get("/v1/me", headers=headers)).status_code == 401  # logged out before the restart
        assert (await client.get("/v1/windows", headers=key)).status_code == 200
        headers = bearer(await log_in(client, NEW))
        records = await audit(client, headers)
        told = [(one["actor"], one["action"], one["outcome"]) for one in records if one["action"] != "session.login"]
        assert sorted(told) == [
            ("first-start", "account.create", "done"),
            ("login:admin", "api-key.create", "done"),
            ("login:admin", "password.change", "done"),
            ("login:admin", "session.logout", "done"),
        ]
        assert {"refused", "done"} <= {one["outcome"] for one in records if one["action"] == "session.login"}
        assert {one["address"] for one in records if one["actor"] == "login:admin"} == {"127.0.0.1"}
    for file in (folder / "state").rglob("*"):
        assert not file.is_file() or b"argon2" not in file.read_bytes()
