"""Liveness and readiness. Both for anybody."""

from fastapi import APIRouter

from api.dependencies import AccessOf, RepositoryOf
from api.problems import OPEN_RESPONSES, Problem, store_unavailable
from api.responses import Health

router = APIRouter(tags=["health"], responses=OPEN_RESPONSES)


@router.get("/healthz", summary="The process answers")
async def healthz() -> Health:
    """Say that the process answers; says nothing of ClickHouse."""
    return Health(status="ok")


@router.get("/readyz", summary="Queries can be answered")
async def readyz(repository: RepositoryOf, access: AccessOf) -> Health:
    """Say whether accounts are known, and ClickHouse answers and holds the tables of this release."""
    if not access.is_ready:
        raise store_unavailable("Not ready. The accounts have not been read from Kafka yet.")
    try:
        pending = await repository.pending_migrations()
    except Problem as problem:
        raise store_unavailable(f"Not ready. {problem.detail}") from None
    if pending:
        raise store_unavailable(f"Not ready. {len(pending)} migrations are not applied: run `drift migrate`.")
    return Health(status="ready")
