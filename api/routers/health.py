"""Liveness and readiness. Both without a tenant."""

from fastapi import APIRouter

from api.dependencies import RepositoryOf
from api.problems import RESPONSES, Problem, store_unavailable
from api.responses import Health

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process answers")
async def healthz() -> Health:
    """Say that the process answers; says nothing of ClickHouse."""
    return Health(status="ok")


@router.get("/readyz", summary="Queries can be answered", responses={503: RESPONSES[503]})
async def readyz(repository: RepositoryOf) -> Health:
    """Say whether ClickHouse answers and holds the tables of this release."""
    try:
        pending = await repository.pending_migrations()
    except Problem as problem:
        raise store_unavailable(f"Not ready. {problem.detail}") from None
    if pending:
        raise store_unavailable(f"Not ready. {len(pending)} migrations are not applied: run `drift migrate`.")
    return Health(status="ready")
