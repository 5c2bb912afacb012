"""SQL over a running embedded instance: chdb belongs to one process, so that process answers, read-only, for its user.

`<folder>/sql.json` (mode 0600) names a loopback port and a token made at start; without it nothing is answered.
"""

import asyncio
import hmac
import json
import os
import secrets
from pathlib import Path

from clickhouse_connect.driver import Client

from schemas.errors import ConfigurationError

FILE = "sql.json"
_LIMIT_BYTES = 1 << 20


class SqlConsole:
    """Answers one query a connection. The client must be read-only: chdb's `file()` and `url()` are denied by it."""

    def __init__(self, folder: Path, client: Client) -> None:
        self._path = folder / FILE
        self._client = client
        self._token = secrets.token_hex(16)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on loopback and leave port and token for the folder's owner."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_LIMIT_BYTES)
        port = self._server.sockets[0].getsockname()[1]
        self._path.unlink(missing_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"port": port, "token": self._token}, file)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)
        await asyncio.to_thread(self._client.close)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await asyncio.wait_for(reader.readline(), timeout=10))
            if not hmac.compare_digest(str(request["token"]), self._token):
                return
            try:
                answer = await asyncio.to_thread(query_text, self._client, str(request["sql"]), str(request["format"]))
                reply = {"ok": True, "text": answer}
            except Exception as error:  # whatever ClickHouse says of the user's query goes back to the user
                reply = {"ok": False, "text": str(error).partition("\n")[0]}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except (ValueError, KeyError, TimeoutError, ConnectionError):
            pass  # not our client; it gets no answer
        finally:
            writer.close()


def query_text(client: Client, sql: str, output_format: str) -> str:
    """Run one query and return its result as text."""
    return client.raw_query(sql, fmt=output_format).decode(errors="replace")


async def ask_running(folder: Path, sql: str, output_format: str) -> str:
    """Have the instance that runs on ``folder`` answer a query.

    Raises:
        ConfigurationError: no instance runs there, or the query is wrong.
    """
    try:
        found = json.loads((folder / FILE).read_text())
        reader, writer = await asyncio.open_connection("127.0.0.1", found["port"], limit=64 * _LIMIT_BYTES)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"no drift run answers for {folder}: start one, or set clickhouse.dsn") from error
    try:
        request = {"token": found["token"], "sql": sql, "format": output_format}
        writer.write(json.dumps(request).encode() + b"\n")
        reply = json.loads(await reader.readline() or b'{"ok": false, "text": "no answer"}')
    except (OSError, ValueError) as error:  # the instance went away, or the answer is longer than the limit
        raise ConfigurationError(
            "no whole answer came back: the instance stopped, or the result is over 64 MiB; add a LIMIT"
        ) from error
    finally:
        writer.close()
    if not reply["ok"]:
        raise ConfigurationError(f"ClickHouse refuses the query: {reply['text']}")
    return str(reply["text"])
