"""ClickHouse's HTTP interface over chdb: as much of it as clickhouse-connect 1.12 uses.

What the engine does is the engine's: settings of the URL, deduplication, formats, errors. What only the server's HTTP
handler does is done here: parsing of the request, compression, headers, status codes.
Source: ClickHouse docs, HTTP interface; src/Server/HTTPHandler.cpp and src/Server/HTTP/exceptionCodeToHTTPStatus.cpp.
"""

import asyncio
import json
import os
import re
import uuid
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chdb
import cramjam
from aiohttp import web

USER, PASSWORD = "drift", "drift"

_TRANSPORT = frozenset({"query", "database", "query_id", "session_id", "session_timeout", "session_check", "role"})
_TRANSPORT |= {"close_session", "compress", "decompress", "quota_key", "wait_end_of_query", "client_protocol_version"}
_TRANSPORT |= {"buffer_size", "default_format", "user", "password", "stacktrace"}
"""Parameters of the URL that are no settings of the engine."""
_WITH_RESULT = frozenset({"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK"})
_INSERT = re.compile(rb"\s*(INSERT\s+INTO\s.+?)\s+FORMAT\s+(\w+)\s*?(?:\n|\Z)", re.IGNORECASE | re.DOTALL)
_connect: Any = chdb.connect  # untyped
_HEAD_BYTES = 1 << 16
_FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE)
_BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"
"""What precedes each Native block once the client states a protocol version: no overflows, no bucket."""
_CODE = re.compile(r"\bCode: (\d+)\b")
_STATUS = dict.fromkeys((192, 193, 497, 516), 403) | dict.fromkeys((46, 47, 50, 60, 81, 115, 279), 404) | {194: 401}
_STATUS |= dict.fromkeys((6, 25, 26, 27, 33, 36, 38, 41, 42, 43, 53, 62, 69, 70, 72, 117, 131, 190, 321, 349, 457), 400)
_STATUS |= {48: 501, 159: 408, 290: 413, 439: 503}
_CODECS = (("lz4", cramjam.lz4), ("zstd", cramjam.zstd), ("gzip", cramjam.gzip))


@dataclass(frozen=True)
class Call:
    """One request for the engine.

    Attributes:
        sql: the statement; of an insert with data, without its FORMAT clause.
        data, data_format: of an insert, decompressed; ``None`` otherwise.
        settings: of the URL. parameters: values of ``{name:Type}``.
    """

    sql: bytes
    data: bytes | None
    data_format: str
    is_insert: bool
    database: str
    settings: Mapping[str, str]
    parameters: Mapping[str, str]
    query_id: str
    protocol_version: int = 0
    default_format: str = "TabSeparated"

    @property
    def keyword(self) -> str:
        """Return the first word of the statement, upper case."""
        words = re.match(rb"[\s(]*(?:--[^\n]*\n\s*)*(\w*)", self.sql)
        return words.group(1).decode().upper() if words else ""

    @property
    def result_format(self) -> str | None:
        """Return the format of the answer; ``None`` for a statement without result."""
        if self.keyword not in _WITH_RESULT:
            return None
        named = _FORMAT.search(self.sql)
        return named.group(1).decode() if named else self.default_format


@dataclass(frozen=True)
class Answer:
    """What the engine said: blocks of the result, or an error with its code and text."""

    blocks: tuple[bytes, ...] = ()
    summary: Mapping[str, str] | None = None
    error_code: int | None = None
    error: str = ""


class Engine:
    """The chdb engine of this process. Calls may come from several threads; each has its own session."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = str(path.resolve())
        self._keeper = _connect(self._path)  # the engine lives as long as one connection
        version, self.timezone = self._keeper.query("SELECT version(), timezone()", "TabSeparated").data().split()
        self.version = str(version)

    def close(self) -> None:
        """Close the engine."""
        self._keeper.close()

    def execute(self, call: Call) -> Answer:
        """Run one call in a session of its own; what the engine refuses is an answer, too."""
        connection = _connect(self._path)
        try:
            if call.database:
                connection.query(f"USE `{call.database.replace('`', '``')}`")
            if call.settings:
                pairs = ", ".join(f"{_identifier(name)} = {_quoted(value)}" for name, value in call.settings.items())
                connection.query(f"SET {pairs}")
            return _run(connection, call)
        except Exception as error:  # chdb raises RuntimeError and kinds of its own: the text says which error it is
            text = str(error)
            found = _CODE.search(text)
            text = text[found.start() :] if found else text
            return Answer(error_code=int(found.group(1)) if found else 1000, error=f"{text} (version {self.version})\n")
        finally:
            connection.close()


def _run(connection: Any, call: Call) -> Answer:
    if call.data is not None:
        # Not chdb's send_insert: in 4.4.0 it answers "written" when the engine has refused the rows (243, disk full).
        # The data lies in memory, as a server has it: no disk but the engine's own can be full.
        with os.fdopen(os.memfd_create("insert"), "wb") as file:
            file.write(call.data)
            file.flush()
            sql = f"{call.sql.decode()} FROM INFILE '/proc/self/fd/{file.fileno()}' FORMAT {call.data_format}"
            done = connection.query(sql, "TabSeparated")
        return Answer(summary={"written_rows": str(done.rows_read()), "written_bytes": str(done.bytes_read())})
    parameters = dict(call.parameters)
    prefix = _BLOCK_INFO if call.protocol_version and call.result_format == "Native" else b""
    if call.keyword in ("SELECT", "WITH") and call.result_format == "Native":
        with connection.send_query(call.sql, "Native", params=parameters) as stream:
            return Answer(tuple(prefix + block.bytes() for block in stream), {})
    result = connection.query(call.sql, call.default_format, params=parameters)
    read = {"read_rows": str(result.rows_read()), "read_bytes": str(result.bytes_read())}
    whole = result.bytes() or b""  # DESCRIBE and the like answer in one block
    return Answer((prefix + whole,) if whole else (), read)


def _identifier(name: str) -> str:
    if not re.fullmatch(r"\w+", name):
        raise RuntimeError(f"Code: 115. DB::Exception: Setting {name!r} is no name. (UNKNOWN_SETTING)")
    return name


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


async def read_call(request: web.Request) -> Call:
    """Read the whole request: the statement stands in the URL, in the body, or in both, one after the other."""
    body = await request.read()
    encoding = request.headers.get("Content-Encoding", "")
    if encoding:
        codec = dict(_CODECS)[encoding]
        body = await asyncio.to_thread(lambda: bytes(codec.decompress(body)))
    fields = request.query
    in_url = fields.get("query", "").encode()
    sql, data, data_format = b"%s\n%s" % (in_url, body) if in_url and body else in_url or body, None, ""
    named = _INSERT.match(sql[:_HEAD_BYTES])
    if named:
        sql, data, data_format = named.group(1), sql[named.end() :], named.group(2).decode()
    return Call(
        sql=sql,
        data=data,
        data_format=data_format,
        is_insert=sql.lstrip()[:6].upper() == b"INSERT",
        database=fields.get("database", ""),
        settings={k: v for k, v in fields.items() if k not in _TRANSPORT and not k.startswith("param_")},
        parameters={k.removeprefix("param_"): v for k, v in fields.items() if k.startswith("param_")},
        query_id=fields.get("query_id") or str(uuid.uuid4()),
        protocol_version=int(fields.get("client_protocol_version") or 0),
        default_format=fields.get("default_format", "TabSeparated"),
    )


def authentication_error(request: web.Request) -> Answer | None:
    """Return the answer to wrong credentials; ``None`` if they are right."""
    wanted = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    if request.headers.get("Authorization") == wanted:
        return None
    text = "Code: 516. DB::Exception: Authentication failed: password is incorrect. (AUTHENTICATION_FAILED)\n"
    return Answer(error_code=516, error=text)


async def write_answer(request: web.Request, call: Call, answer: Answer, timezone: str) -> web.StreamResponse:
    """Send the engine's answer with the headers of ClickHouse, compressed as the client asked for."""
    headers = {"X-ClickHouse-Query-Id": call.query_id, "X-ClickHouse-Timezone": timezone}
    if answer.error_code is not None:
        headers["X-ClickHouse-Exception-Code"] = str(answer.error_code)
        status = _STATUS.get(answer.error_code, 500)
        return web.Response(status=status, text=answer.error, headers=headers)
    headers["X-ClickHouse-Summary"] = json.dumps(answer.summary or {})
    if call.result_format is not None:
        headers["X-ClickHouse-Format"] = call.result_format
    codec = None
    if call.settings.get("enable_http_compression") == "1":
        asked = request.headers.get("Accept-Encoding", "")
        codec = next(((name, codec) for name, codec in _CODECS if name in asked), None)
    if codec is not None:
        headers["Content-Encoding"] = codec[0]
    response = web.StreamResponse(headers=headers)
    response.content_type = "application/octet-stream"
    if sum(map(len, answer.blocks)) < 1 << 20:
        body = b"".join(answer.blocks)
        packed = await asyncio.to_thread(lambda: bytes(codec[1].compress(body))) if codec and body else body
        return web.Response(body=packed, headers=headers, content_type="application/octet-stream")
    await response.prepare(request)
    async for part in _packed(iter(answer.blocks), codec):
        await response.write(part)
    await response.write_eof()
    return response


async def _packed(blocks: Iterator[bytes], codec: Any) -> Any:
    compressor = codec[1].Compressor() if codec else None
    for block in blocks:
        if compressor is None:
            yield block
        else:
            yield await asyncio.to_thread(lambda b=block: _flushed(compressor, b))  # type: ignore[misc]
    if compressor is not None:
        yield bytes(compressor.finish())


def _flushed(compressor: Any, block: bytes) -> bytes:
    compressor.compress(block)
    return bytes(compressor.flush())
