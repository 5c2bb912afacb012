"""Accounts in a file, the signing key, and the server's deadline for headers."""

import asyncio
import json
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from api import middleware
from api.middleware import Bounds, Envelope
from api.security.tokens import OwnTokens
from deploy.access_file import NAME, FileControlLog
from deploy.http_server import server_config
from deploy.serving import listen
from deploy.signing_key import own_signing_key, read_signing_key
from schemas.access_records import ACCOUNT, API_KEY, RecordsUnavailable
from schemas.errors import ConfigurationError
from schemas.settings import ApiSettings, AuthSettings, LimitSettings

Records = dict[tuple[str, str, str], bytes | None]


async def read(folder: Path) -> tuple[FileControlLog, Records]:
    found: Records = {}
    log = FileControlLog(folder)
    await log.start(lambda tenant, kind, record_id, value: found.__setitem__((tenant, kind, record_id), value))
    return log, found


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    log, found = await read(tmp_path)
    await log.write("acme", ACCOUNT, "ann", b"\x00one")
    await log.write("acme", ACCOUNT, "ann", b"two")
    await log.write("acme", API_KEY, "k", b"x")
    await log.write("acme", API_KEY, "k", None)
    assert found == {("acme", ACCOUNT, "ann"): b"two", ("acme", API_KEY, "k"): None}
    _, again = await read(tmp_path)
    assert again == {("acme", ACCOUNT, "ann"): b"two"}
    assert len((tmp_path / NAME).read_bytes().splitlines()) == 1  # what is obsolete is gone
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


async def test_a_line_that_a_power_cut_left_half_is_dropped_and_other_damage_is_said(tmp_path: Path) -> None:
    log, _ = await read(tmp_path)
    await log.write("acme", ACCOUNT, "ann", b"one")
    await log.write("acme", ACCOUNT, "bob", b"two")
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:-5])
    assert list((await read(tmp_path))[1]) == [("acme", ACCOUNT, "ann")]
    (tmp_path / NAME).write_bytes(whole[5:])
    with pytest.raises(ConfigurationError, match="damaged in line 1"):
        await read(tmp_path)


async def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    log, _ = await read(tmp_path)
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(RecordsUnavailable):
        await log.write("acme", ACCOUNT, "ann", b"one")
    with pytest.raises(ValueError, match="colon"):
        await log.write("acme:account", "x", "y", b"")


def test_a_folder_gets_one_signing_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    pem = own_signing_key(tmp_path)
    OwnTokens(pem)
    assert own_signing_key(tmp_path) == pem
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_signing_key(AuthSettings(signing_key_file=file)) == pem
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_signing_key(AuthSettings(signing_key_file=file))


def test_without_a_key_there_is_no_default(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="openssl"):
        read_signing_key(AuthSettings())
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_signing_key(AuthSettings(signing_key_file=tmp_path / "none"))


async def serve(settings: ApiSettings) -> tuple[uvicorn.Server, asyncio.Task[None], int]:
    app = FastAPI()
    app.add_api_route("/healthz", lambda: "ok")
    app.add_middleware(Bounds, settings=settings.limits)
    app.add_middleware(Envelope, settings=settings)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(app, settings, "critical"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    return server, task, int(listener.getsockname()[1])


HEADER_TIMEOUT_S = 12_345.0
"""No other timer of the server is as long: by this the deadlines of headers are known."""


class HeaderDeadlines:
    """The deadlines of headers of the running loop: they are over when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timers: list[tuple[asyncio.TimerHandle, Callable[[], object]]] = []
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def noted(delay: float, callback: Callable[..., object], *arguments: Any, **context: Any) -> Any:
            timer = call_later(delay, callback, *arguments, **context)
            if delay == HEADER_TIMEOUT_S:
                self.timers.append((timer, callback))
            return timer

        monkeypatch.setattr(loop, "call_later", noted)

    def are_over(self) -> None:
        for timer, callback in self.timers:
            if not timer.cancelled():
                timer.cancel()
                callback()


async def test_who_sends_headers_for_ever_is_cut_off_and_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = HeaderDeadlines(monkeypatch)
    server, task, port = await serve(ApiSettings(limits=LimitSettings(header_timeout_s=HEADER_TIMEOUT_S)))
    try:
        async with asyncio.timeout(60):
            slow_reader, slow = await asyncio.open_connection("127.0.0.1", port)
            slow.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
            silent_reader, silent = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for number in range(3):  # on one connection
                if number == 2:
                    while len(deadlines.timers) < 4:  # of each connection, and of the second request
                        await asyncio.sleep(0.01)
                    deadlines.are_over()
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200") and b"server:" not in head.lower()
                await reader.readexactly(4)
            assert await slow_reader.read() == b"" and await silent_reader.read() == b""
            for one in (slow, silent, writer):
                one.close()
    finally:
        server.should_exit = True
        await task


async def test_who_reads_no_answer_before_all_is_sent_gets_it_though_the_body_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(middleware, "LINGER_S", 3_600.0)
    limits = LimitSettings(body_bytes=1_024, body_timeout_s=3_600)
    server, task, port = await serve(ApiSettings(limits=limits))
    body = b"x" * (32 << 20)  # more than all buffers on the way hold

    def send_all_then_read() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=600) as client:
            client.sendall(b"POST /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body))
            client.sendall(body)
            return b"".join(iter(lambda: client.recv(65_536), b""))

    try:
        answer = await asyncio.to_thread(send_all_then_read)
    finally:
        server.should_exit = True
        await task
    head, _, told = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413") and b"connection: close" in head.lower()
    assert json.loads(told)["type"].endswith(":body-too-large")
