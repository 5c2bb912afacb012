"""Everything that the OpenAPI document allows, and much that it does not, asked of the API by schemathesis.

Examples are few and always the same. No server error, no undocumented status, every answer as its schema says.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from api.security.principal import How, Principal, Role
from deploy.http_server import server_config
from schemas.ids import TenantId
from schemas.settings import ApiSettings, Settings
from tests.access import PATIENCE_S, Doors, patient_limits
from tests.builders_clickhouse import ClickHouse
from tests.integration.test_api import fill
from tests.integration.test_live import FakeFeed

EXAMPLES = {GenerationMode.POSITIVE: 25, GenerationMode.NEGATIVE: 20}
LIMITS = patient_limits(live_per_tenant=1)
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


@dataclass(frozen=True)
class Contract:
    """An API that runs, its document, and headers of an administrator."""

    url: str
    document: dict[str, Any]
    headers: dict[str, str]
    app: FastAPI
    doors: Doors


@pytest.fixture
def contract(clickhouse: ClickHouse) -> Iterator[Contract]:
    """Serve acme's data on a real port. The one live place is taken: a stream would have no end."""
    fill(clickhouse, "acme")
    configured = Settings(clickhouse=clickhouse.settings, api=ApiSettings(limits=LIMITS, query_timeout_s=PATIENCE_S))
    doors = Doors(configured.api)
    doors.account("acme", "ann", Role.ADMIN)
    headers = doors.headers("acme", Role.ADMIN)
    app = create_app(configured, doors.access, feed=FakeFeed())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(app, configured.api, "error"))
    thread = threading.Thread(target=lambda: asyncio.run(server._serve(sockets=[listener])), daemon=True)
    thread.start()
    end_s = time.monotonic() + PATIENCE_S
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end_s
        time.sleep(0.01)
    app.state.hub.subscribe(Principal("x", TenantId("acme"), Role.VIEWER, How.LOGIN, "x"), lambda _: False)
    app.state.hub.check = lambda _: None
    try:
        yield Contract(f"http://127.0.0.1:{listener.getsockname()[1]}", app.openapi(), headers, app, doors)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


@pytest.mark.parametrize("mode", list(EXAMPLES))
def test_no_server_error_and_no_undocumented_answer(contract: Contract, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(contract.document)
    asked: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]

        @settings(
            max_examples=EXAMPLES[mode],
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer = case.call(base_url=contract.url, headers=contract.headers, timeout=PATIENCE_S)
            asked.setdefault(case.operation.label, set()).add(answer.status_code)
            case.validate_response(answer, checks=list(CHECKS))

        try:
            ask()
        except Unsatisfiable:  # what takes nothing cannot be asked wrongly
            assert mode is GenerationMode.NEGATIVE
            assert not list(operation.iter_parameters()) and not operation.definition.raw.get("requestBody")
    if mode is GenerationMode.POSITIVE:
        assert len(asked) == sum(len(item) for item in contract.document["paths"].values())
        answered = [label for label, statuses in asked.items() if any(status < 300 for status in statuses)]
        assert len(answered) > len(asked) // 2, f"most operations answer: {asked}"


def test_an_undocumented_status_would_be_found(contract: Contract) -> None:
    document = contract.document
    responses = document["paths"]["/v1/services"]["get"]["responses"]
    kept = responses.pop("200")
    try:
        schema = schemathesis.openapi.from_dict(document)
        case = schema["/v1/services"]["GET"].Case()
        answer = case.call(base_url=contract.url, headers=contract.headers, timeout=PATIENCE_S)
        with pytest.raises(BaseException, match="Undocumented status code"):
            case.validate_response(answer, checks=[status_code_conformance])
    finally:
        responses["200"] = kept
