"""The HTTP API over ClickHouse. Of Kafka it knows what it is given, so that it scales and fails on its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute

from api.clickhouse import ClientFactory, ReaderPool, open_tenant_reader
from api.conditional import Conditional
from api.dependencies import current_principal, live_viewer, viewer
from api.live.hub import Hub
from api.middleware import Bounds, Envelope
from api.openapi import complete_openapi
from api.parameters import refuse_unknown_parameters
from api.problems import install_handlers
from api.repository import Repository
from api.routers import (
    accounts,
    audit,
    blast_radius,
    events,
    graph,
    graph_detail,
    health,
    live,
    predictions,
    root_cause,
    sessions,
    statistics,
)
from api.security.access import Access
from api.security.administration import Administration
from api.security.sessions import Sessions
from schemas.clickhouse_dsn import database_of
from schemas.live_events import EventFeed
from schemas.settings import ApiSettings, Settings

_DESCRIPTION = """
What changed in the traffic between services, why, and who is the root cause.

* Every `/v1` path needs a credential: a token of `POST /v1/sessions`, one of a configured identity provider, or an API
  key. The tenant is the credential's; nobody sees another one.
* Times are Unix epoch milliseconds, UTC, in event time.
* Errors are `application/problem+json` (RFC 9457); `X-Request-Id` is in every answer.
* Query parameters that a path does not know are refused; so is a method that it does not know (405, with `Allow`).
* Data has an `ETag`; `If-None-Match` is answered 304 where nothing changed.
* `WS /v1/live/socket` is `/v1/live/events` as a WebSocket, with the same parameters.
"""


def create_app(
    settings: Settings,
    access: Access,
    client_factory: ClientFactory | None = None,
    feed: EventFeed | None = None,
) -> FastAPI:
    """Build the application. Nothing is opened before its first query, so it starts while ClickHouse is down.

    Args:
        access: decides who gets in; the application starts and stops it.
        feed: reads `drift-events`; the application starts and stops it. Without it there are no live events.
        client_factory: opens a client that can read only; by default ``open_tenant_reader`` with ``settings``.

    Raises:
        ConfigurationError: ``clickhouse.dsn`` cannot be read.
    """
    database = database_of(settings.clickhouse)
    hub = Hub(feed, access.recheck, settings.api.limits.live_per_tenant)
    factory = client_factory or partial(open_tenant_reader, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = ReaderPool(factory, settings.api.query_timeout_s)
        app.state.repository = Repository(pool, database)
        await access.start()
        await hub.start()
        try:
            yield
        finally:
            await hub.stop()
            await access.stop()
            await pool.close()

    app = FastAPI(
        title="SecureGuard Drift",
        version=_version(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url="/openapi.json",
        generate_unique_id_function=_operation_id,
        # The pages would load scripts from elsewhere; the document works with any viewer.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.access = access
    app.state.hub, app.state.cors_origins = hub, settings.api.cors_origins
    app.state.sessions, app.state.administration = Sessions(access), Administration(access)
    app.state.predictions = predictions.OneAtATime()
    install_handlers(app)
    _add_middleware(app, settings.api)
    app.include_router(health.router)
    known_parameters = Depends(refuse_unknown_parameters)
    app.include_router(sessions.open_router, prefix="/v1", dependencies=[known_parameters])
    # Credentials are looked at first: whoever has none learns nothing of what a path takes.
    for router in (sessions.router, accounts.router, audit.router):
        app.include_router(router, prefix="/v1", dependencies=[Depends(current_principal), known_parameters])
    readers = (events, statistics, graph, graph_detail, root_cause, blast_radius, predictions)
    for module in readers:
        app.include_router(module.router, prefix="/v1", dependencies=[Depends(viewer), known_parameters])
    app.include_router(live.router, prefix="/v1", dependencies=[Depends(live_viewer), known_parameters])
    complete_openapi(app)
    return app


def _add_middleware(app: FastAPI, settings: ApiSettings) -> None:
    """Add what wraps the application; the last one is the outermost."""
    app.add_middleware(Conditional)
    app.add_middleware(Bounds, settings=settings.limits)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", "X-Request-Id", "If-None-Match"],
            expose_headers=["X-Request-Id", "Retry-After", "X-Total-Count", "ETag"],
            allow_credentials=False,
        )
    app.add_middleware(Envelope, settings=settings)


def _operation_id(route: APIRoute) -> str:
    """Return what a generated client calls an operation: the function's name, without path and method."""
    return route.name


def _version() -> str:
    try:
        return version("secureguard-drift")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
