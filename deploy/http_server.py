"""How uvicorn serves the API: no name of the server, and no connection that is held open by saying little."""

import asyncio
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from schemas.settings import ApiSettings

MAX_HEADER_BYTES = 16 * 1024
KEEP_ALIVE_S = 15


def make_protocol(header_timeout_s: float, stall_timeout_s: float) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP/1.1 protocol with two deadlines that uvicorn lacks.

    One for a request's headers, counted from the connection or from the first byte of a later request on it; one for a
    client that takes nothing of what waits for it. The application bounds the rest.
    """

    class DeadlineProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _stall: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._set_deadline()

        def data_received(self, data: bytes) -> None:
            if not self._is_under_way() and self._deadline is None:
                self._set_deadline()
            super().data_received(data)
            if self._is_under_way():
                self._end_deadline()

        def on_response_complete(self) -> None:
            self._end_deadline()
            super().on_response_complete()

        def handle_websocket_upgrade(self, event: h11.Request) -> None:
            self._end_deadline()
            super().handle_websocket_upgrade(event)

        def pause_writing(self) -> None:
            self._stall = self.loop.call_later(stall_timeout_s, self.transport.abort)
            super().pause_writing()

        def resume_writing(self) -> None:
            self._end_stall()
            super().resume_writing()

        def _end_stall(self) -> None:
            if self._stall is not None:
                self._stall.cancel()
                self._stall = None

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_deadline()
            self._end_stall()
            super().connection_lost(exc)

        def _is_under_way(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _set_deadline(self) -> None:
            self._deadline = self.loop.call_later(header_timeout_s, self._give_up)

        def _end_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            self._deadline = None
            if not self.transport.is_closing():
                self.transport.close()

    return DeadlineProtocol


def server_config(app: FastAPI, settings: ApiSettings, log_level: str) -> uvicorn.Config:
    """Return the configuration of a server for the API."""
    return uvicorn.Config(
        app,
        http=make_protocol(settings.limits.header_timeout_s, settings.limits.stall_timeout_s),
        ws="websockets-sansio",
        ws_max_size=1_024,  # clients of live events have nothing to say
        ws_per_message_deflate=False,  # a window of compression for each client is more memory than its queue
        log_level=log_level,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies) or None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=3,
        limit_concurrency=settings.limits.connections,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
