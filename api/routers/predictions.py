"""What a change would do to the learned graph, before it is deployed. Only text that the request holds is read."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import GraphRepositoryOf, RepositoryOf
from api.problems import NOT_FOUND, RESPONSES, Problem, invalid_parameter, store_unavailable
from api.tenant import Tenant
from models.prediction.documents import Document
from models.prediction.manifests import read_manifests
from models.prediction.predict import predict
from models.prediction.yaml_text import documents_of
from schemas.errors import WireFormatError
from schemas.prediction import BaselineEdge, DeclaredCall, ForbiddenEdge, Location, PredictionReport

router = APIRouter(tags=["prediction"], responses=RESPONSES)

MAX_BASELINE_EDGES = 50_000
MAX_CHANGES = 1_000
MAX_JUDGEMENTS = 2_000_000
"""Policies times learned edges: bounds the time of one prediction."""
DAY_MS = 86_400_000
WAIT_S = 10.0

Service = Annotated[str, Field(min_length=1, max_length=256, examples=["shop/cart"])]
Port = Annotated[int, Field(ge=-1, le=65_535, description="-1: not known.", examples=[8080])]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ManifestIn(_In):
    """Text of Kubernetes manifests, YAML or JSON, rendered; documents apart by ``---``."""

    name: str = Field(min_length=1, max_length=256, description="What locations name; it is never opened.")
    text: str


class EdgeIn(_In):
    """A call that the change will make."""

    src: Service
    dst: Service
    port: Port = -1
    protocol: Annotated[int, Field(ge=-1, le=255, description="IANA number; -1: not known.")] = -1


class RuleIn(_In):
    """Calls that must not be. Names are globs."""

    name: str = Field(min_length=1, max_length=256, examples=["no store from the edge"])
    src: Service
    dst: Service
    port: Annotated[int, Field(ge=-1, le=65_535, description="-1: any.")] = -1


_EXAMPLE_MANIFEST = """apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    spec:
      containers:
      - name: web
        env:
        - {name: DATABASE, value: "db.data:5432"}
"""


class PredictionIn(_In):
    """A change: manifests, an edge list, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "manifests": [{"name": "web.yaml", "text": _EXAMPLE_MANIFEST}],
                    "edges": [{"src": "shop/web", "dst": "shop/cart", "port": 8080, "protocol": 6}],
                    "rules": [{"name": "no store from the shop", "src": "shop/*", "dst": "data/*", "port": 5432}],
                }
            ]
        }
    )

    manifests: list[ManifestIn] = Field(default_factory=list, max_length=100)
    edges: list[EdgeIn] = Field(default_factory=list, max_length=2_000)
    rules: list[RuleIn] = Field(default_factory=list, max_length=200)
    namespace: str = Field(
        default="default", max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", description="Of objects without."
    )
    lane: str | None = Field(default=None, max_length=256, description="Learned by this lane; by all live ones.")
    days: int = Field(default=14, ge=1, le=90, description="Days before the newest closed window that were learned.")


class LocationOut(BaseModel):
    """Where in the request something stands; line 0 is the whole text."""

    model_config = ConfigDict(from_attributes=True)

    file: str
    line: int


class PredictedChangeOut(BaseModel):
    """One thing the change would do."""

    model_config = ConfigDict(from_attributes=True)

    effect: str = Field(description="adds, breaks, shadows or violates.")
    src: str
    dst: str
    port: int
    protocol: int
    reason: str
    risk: int
    location: LocationOut
    drift_kinds: list[str] = Field(description="Findings that it would raise once deployed.")


class PredictionOut(BaseModel):
    """What the change would do, most risk first."""

    risk: int = Field(description="0..100; 0: nothing changes in the graph.")
    reasons: list[str]
    changes_total: int
    changes: list[PredictedChangeOut]
    drift_events: dict[str, int] = Field(description="Findings by kind.", examples=[{"new_edge": 1}])
    baseline_edges: int
    notes: list[str]


class OneAtATime:
    """Predictions are work for a processor: one runs at a time, in a thread."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    @classmethod
    def of(cls, request: Request) -> "OneAtATime":
        """Return the application's."""
        predictions: OneAtATime = request.app.state.predictions
        return predictions

    async def run(self, body: PredictionIn, baseline: list[BaselineEdge]) -> PredictionReport:
        """Return the report of a prediction.

        Raises:
            Problem: 422 a manifest is none; 503 others take too long.
        """
        try:
            await asyncio.wait_for(self._turn.acquire(), WAIT_S)
        except TimeoutError:
            raise store_unavailable("Other predictions are under way.") from None
        task = asyncio.create_task(asyncio.to_thread(_predict, body, baseline))
        # The thread goes on where the request is given up, and so does its turn.
        task.add_done_callback(self._give_back)
        return await asyncio.shield(task)

    def _give_back(self, task: "asyncio.Task[PredictionReport]") -> None:
        self._turn.release()
        if not task.cancelled():
            task.exception()


@router.post("/predictions", summary="What a change would do to the graph", responses=NOT_FOUND)
async def make_prediction(
    tenant: Tenant,
    repository: RepositoryOf,
    graph: GraphRepositoryOf,
    predictions: Annotated[OneAtATime, Depends(OneAtATime.of)],
    body: PredictionIn,
) -> PredictionOut:
    """Compare a change with what was learned: calls it adds, breaks or shadows, rules it violates, how risky that is.

    Nothing is kept. YAML anchors are not followed; a request may have `api.limits.prediction_bytes`.
    """
    if not body.manifests and not body.edges:
        raise invalid_parameter("manifests", "give manifests, edges, or both")
    newest_ms = await repository.newest_ms(tenant, body.lane or "")
    if not newest_ms:
        raise Problem(404, "no-windows", "No closed window", "Nothing was learned of this tenant and lane yet.")
    since_ms = max(newest_ms - body.days * DAY_MS, 0)
    baseline = await graph.learned_edges(tenant, body.lane or "", since_ms, newest_ms, MAX_BASELINE_EDGES + 1)
    is_cut = len(baseline) > MAX_BASELINE_EDGES
    baseline = baseline[:MAX_BASELINE_EDGES]
    report = await predictions.run(body, baseline)
    notes = [f"Only the {MAX_BASELINE_EDGES:,} learned edges with most calls were compared."] if is_cut else []
    return PredictionOut(
        risk=report.risk,
        reasons=list(report.reasons),
        changes_total=len(report.changes),
        changes=[PredictedChangeOut.model_validate(one) for one in report.changes[:MAX_CHANGES]],
        drift_events=report.drift_events,
        baseline_edges=len(baseline),
        notes=[*notes, *report.notes],
    )


def _predict(body: PredictionIn, baseline: list[BaselineEdge]) -> PredictionReport:
    documents: list[Document] = []
    for number, manifest in enumerate(body.manifests):
        try:
            documents += documents_of(manifest.text, manifest.name, max_aliases=0)
        except WireFormatError as error:
            raise invalid_parameter(f"manifests.{number}", str(error)) from None
    manifests = read_manifests(documents, body.namespace)
    if len(manifests.policies) * len(baseline) > MAX_JUDGEMENTS:
        raise invalid_parameter("manifests", "too many policies for one request: send them in parts")
    calls = [
        DeclaredCall(one.src, one.dst, one.port, one.protocol, "listed", Location("edges", number))
        for number, one in enumerate(body.edges, 1)
    ]
    rules = [ForbiddenEdge(one.name, one.src, one.dst, one.port) for one in body.rules]
    return predict(manifests, baseline, calls, rules)
