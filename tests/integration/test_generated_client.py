"""A client that openapi-python-client makes from the OpenAPI document, used against the running API.

Its models read what the document promises: a field that is missing fails, and one that nobody promised is found.
"""

import copy
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import httpx
import pytest

from api.problems import query_timeout, store_unavailable
from api.security.principal import Role
from tests.access import PASSWORD, PATIENCE_S
from tests.integration import test_openapi_contract as served
from tests.integration.test_api import CALM, START_MS, WINDOW_MS

pytest.importorskip("openapi_python_client", reason="not installed: `make test` installs it")
contract = served.contract
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
CAUSE_EVENT = "acme-event-0-2"
PATIENT = httpx.Timeout(PATIENCE_S)
Make = Callable[[dict[str, Any]], "Generated"]


class Generated:
    """A generated package."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.base = importlib.import_module(name)

    def operation(self, tag: str, name: str) -> ModuleType:
        """Return the module of one operation."""
        return importlib.import_module(f"{self.name}.api.{tag}.{name}")

    def model(self, name: str) -> Any:
        """Return one model's class."""
        return getattr(importlib.import_module(f"{self.name}.models"), name)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Generate a client from a document; warnings of the generator are errors."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def generate(document: dict[str, Any]) -> Generated:
        name = f"drift_client_{tmp_path.name.replace('-', '_')}_{len(made)}"
        made.append(name)
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        (tmp_path / "config.yaml").write_text("post_hooks: []\n")
        command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"]
        command += ["--path", str(tmp_path / "openapi.json"), "--config", str(tmp_path / "config.yaml")]
        ended = subprocess.run(
            [*command, "--output-path", str(tmp_path / name)], capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        importlib.invalidate_caches()
        return Generated(name)

    return generate


def promised(value: Any) -> Any:
    """Return a parsed answer after looking for fields, at any depth, that the document does not know."""
    if isinstance(value, list):
        for one in value:
            promised(one)
    elif attrs.has(type(value)):
        fields = [one.name for one in attrs.fields(type(value)) if one.name != "additional_properties"]
        extra = getattr(value, "additional_properties", {})
        assert not (fields and extra), f"{type(value).__name__} has {sorted(extra)} too"  # without fields: a mapping
        for name in fields:
            promised(getattr(value, name))
    return value


def with_key(made: Generated, contract: served.Contract) -> Any:
    key = contract.headers["X-API-Key"]
    return client_of(made, contract, key)


def client_of(made: Generated, contract: served.Contract, token: str) -> Any:
    return made.base.AuthenticatedClient(
        base_url=contract.url, token=token, raise_on_unexpected_status=True, timeout=PATIENT
    )


def test_an_incident_from_log_in_to_evidence(contract: served.Contract, make: Make) -> None:
    made = make(contract.document)
    operations = [item for path in contract.document["paths"].values() for item in path.values()]
    names = {(item["tags"][0].replace(" ", "_"), item["operationId"]) for item in operations}
    assert len(names) == len(operations)
    for tag, name in names:
        assert callable(made.operation(tag, name).sync_detailed)

    anybody = made.base.Client(base_url=contract.url, raise_on_unexpected_status=True, timeout=PATIENT)
    body = made.model("LoginIn")(tenant="acme", account="ann", password=PASSWORD)
    tokens = promised(made.operation("sessions", "log_in").sync(client=anybody, body=body))
    client = client_of(made, contract, tokens.access_token)
    me = promised(made.operation("sessions", "me").sync(client=client))
    assert (me.tenant, me.role) == ("acme", "admin")

    drift = {name: made.operation("drift", name) for tag, name in names if tag == "drift"}
    page = promised(drift["list_drift_events"].sync(client=client, severity=["high"], limit=3))
    assert [event.event_id for event in page.events] == ["acme-event-0-1"]
    [event] = page.events
    assert (event.kind, event.evidence[0].observed) == ("latency_increase", 418_000.0)
    detail = promised(drift["get_drift_event"].sync(CAUSE_EVENT, client=client))
    assert detail.explanation.what and len(detail.history) == 3
    finding = promised(drift["get_finding"].sync("acme-finding-0", client=client))
    assert len(finding.events) == 3
    assert promised(drift["summarise_drift_events"].sync(client=client)).events == 5
    assert promised(drift["get_timeline"].sync(client=client, since="-1h", bucket="5m")).buckets
    assert drift["export_drift_events"].sync(client=client, format_=made.model("ExportFormat").CSV).count("\n") == 6

    ranked = promised(made.operation("root_cause", "get_root_cause").sync(client=client, event_id=CAUSE_EVENT))
    assert (
        ranked.causes[0].service == "payment"
        and ranked.causes[0].path == ["payment", "checkout", "frontend", "user"][: len(ranked.causes[0].path)]
    )
    assert "checkout to payment" in ranked.causes[0].evidence[0].sentence
    radius = promised(
        made.operation("blast_radius", "get_blast_radius").sync(
            client=client, service="payment", since=str(START_MS + CALM * WINDOW_MS)
        )
    )
    assert {"checkout", "frontend"} <= {one.service for one in radius.impacted}

    graph = {name: made.operation("graph", name) for tag, name in names if tag == "graph"}
    assert {edge.dst for edge in promised(graph["get_graph"].sync(client=client)).edges} >= {"payment", "cart"}
    promised(graph["get_edge"].sync(client=client, src="checkout", dst="payment", since="-1h"))
    promised(graph["get_service"].sync(client=client, service="acme/payment", since="-1h"))
    promised(graph["get_difference"].sync(client=client, before="-10m"))
    for name in ("list_edges", "list_services", "list_windows"):
        promised(graph[name].sync(client=client))
    promised(made.operation("statistics", "get_statistics").sync(client=client))

    change = made.model("PredictionIn").from_dict({"edges": [{"src": "frontend", "dst": "payment", "port": 8080}]})
    predicted = promised(made.operation("prediction", "make_prediction").sync(client=client, body=change))
    assert [one.src for one in predicted.changes] == ["frontend"]
    promised(made.operation("administration", "list_audit_log").sync(client=client))
    made.operation("sessions", "log_out").sync_detailed(client=client)
    assert made.operation("sessions", "me").sync_detailed(client=client).status_code == 401


def test_errors_are_what_the_document_says(contract: served.Contract, make: Make) -> None:
    """Every documented status but 408, which a client of HTTP libraries cannot bring about (test_attacks.py does)."""
    made = make(contract.document)
    client = with_key(made, contract)
    administration = "administration"
    reached: dict[int, Any] = {}

    def drift(name: str) -> Any:
        return made.operation("drift", name)

    def take(answer: Any) -> Any:
        assert answer.parsed is not None or answer.status_code in (204, 304)
        if answer.status_code >= 400:
            assert type(answer.parsed).__name__ == "ProblemOut" and answer.parsed.status == answer.status_code
        reached[int(answer.status_code)] = promised(answer.parsed)
        return answer

    first = take(drift("list_drift_events").sync_detailed(client=client))
    unchanged = client.with_headers({"If-None-Match": first.headers["etag"]})
    take(drift("list_drift_events").sync_detailed(client=unchanged))
    log_in = made.operation("sessions", "log_in")
    headers = {"Content-Type": "application/json"}
    raw = httpx.post(f"{contract.url}/v1/sessions", content=b"\xff", headers=headers, timeout=PATIENT)
    take(log_in._build_response(client=client, response=raw))
    take(drift("list_drift_events").sync_detailed(client=client_of(made, contract, "nobody")))
    viewer = client_of(made, contract, contract.doors.key("acme", Role.VIEWER))
    take(made.operation(administration, "list_accounts").sync_detailed(client=viewer))
    take(drift("get_drift_event").sync_detailed("globex-event-0-1", client=client))
    new = made.model("AccountIn").from_dict({"account": "bob", "role": "viewer"})
    for _ in range(2):
        take(made.operation(administration, "create_account").sync_detailed(client=client, body=new))
    take(made.operation(administration, "delete_account").sync_detailed("bob", client=client))
    big = made.model("PredictionIn").from_dict({"manifests": [{"name": "a.yaml", "text": "#" * 300_000}]})
    take(made.operation("prediction", "make_prediction").sync_detailed(client=client, body=big))
    take(drift("list_drift_events").sync_detailed(client=client.with_headers({"Host": "evil.example"})))
    client = with_key(made, contract)
    take(drift("list_drift_events").sync_detailed(client=client, limit=0))
    take(made.operation("live", "follow_events").sync_detailed(client=client))  # its one place is taken

    repository = contract.app.state.repository
    for error in (RuntimeError("?"), store_unavailable("?"), query_timeout(1)):
        contract.app.state.repository = _Broken(error)
        take(drift("list_drift_events").sync_detailed(client=client))
    contract.app.state.repository = repository

    documented = {
        int(status)
        for path in contract.document["paths"].values()
        for item in path.values()
        for status in item["responses"]
    }
    assert set(reached) == documented - {408}


class _Broken:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        async def fail(*_: Any, **__: Any) -> Any:
            raise self._error

        return fail


def test_a_method_that_no_path_knows_is_refused_with_those_it_does(contract: served.Contract) -> None:
    with httpx.Client(base_url=contract.url, headers=contract.headers, timeout=PATIENT) as client:
        for path, item in contract.document["paths"].items():
            known = {method.upper() for method in item}
            for method in {*METHODS} - known:
                answer = client.request(method, path.replace("{", "").replace("}", ""))
                assert answer.status_code == 405, (method, path)
                assert answer.headers["content-type"] == "application/problem+json"
                assert set(answer.headers["allow"].split(", ")) == known, path


@pytest.mark.parametrize("is_promised", [False, True])
def test_a_document_that_is_wrong_is_found(contract: served.Contract, make: Make, is_promised: bool) -> None:
    """A field that answers have and the document has not, and the other way round."""
    document = copy.deepcopy(contract.document)
    cause = document["components"]["schemas"]["RootCauseOut"]
    if is_promised:
        cause["properties"]["culprit"] = {"type": "string"}
        cause["required"].append("culprit")
    else:
        del cause["properties"]["confidence"]
        cause["required"].remove("confidence")
    made = make(document)
    ask = made.operation("root_cause", "get_root_cause").sync
    with pytest.raises(KeyError if is_promised else AssertionError, match=r"culprit|confidence"):
        promised(ask(client=with_key(made, contract), event_id=CAUSE_EVENT))
