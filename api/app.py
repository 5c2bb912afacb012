"""The HTTP API over ClickHouse. It knows nothing of Kafka, so that it scales and fails on its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import Depends, FastAPI

from api.clickhouse import ClientFactory, ReaderPool, open_reader
from api.middleware import Envelope
from api.parameters import refuse_unknown_parameters
from api.problems import MEDIA_TYPE, install_handlers
from api.repository import Repository
from api.routers import events, graph, health, root_cause
from schemas.clickhouse_dsn import database_of
from schemas.settings import Settings

_DESCRIPTION = """
What changed in the traffic between services, why, and who is the root cause.

* Every `/v1` path needs a tenant: header `X-Tenant` or `?tenant=`. There is no authentication yet: loopback only.
* Times are Unix epoch milliseconds, UTC, in event time.
* Errors are `application/problem+json` (RFC 9457); `X-Request-Id` is in every answer.
* Query parameters that a path does not know are refused.
"""


def create_app(settings: Settings, client_factory: ClientFactory | None = None) -> FastAPI:
    """Build the application. Nothing is opened before its first query, so it starts while ClickHouse is down.

    Args:
        client_factory: opens a client that can read only; by default ``open_reader`` with ``settings``.

    Raises:
        ConfigurationError: ``clickhouse.dsn`` cannot be read.
    """
    database = database_of(settings.clickhouse)
    factory = client_factory or partial(open_reader, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = ReaderPool(factory, settings.api.query_timeout_s)
        app.state.repository = Repository(pool, database)
        try:
            yield
        finally:
            await pool.close()

    app = FastAPI(
        title="SecureGuard Drift",
        version=_version(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url="/openapi.json",
        # The pages would load scripts from elsewhere; the document works with any viewer.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    install_handlers(app)
    app.add_middleware(Envelope)
    app.include_router(health.router)
    for router in (events.router, graph.router, root_cause.router):
        app.include_router(router, prefix="/v1", dependencies=[Depends(refuse_unknown_parameters)])
    _document_problems(app)
    return app


def _version() -> str:
    try:
        return version("secureguard-drift")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


def _document_problems(app: FastAPI) -> None:
    """Say in the OpenAPI document that errors are problems; FastAPI would say application/json."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for path in document["paths"].values():
            for operation in path.values():
                for status, response in operation["responses"].items():
                    if status >= "400" and "application/json" in response.get("content", {}):
                        response["content"][MEDIA_TYPE] = response["content"].pop("application/json")
        return document

    app.openapi = openapi  # type: ignore[method-assign]
