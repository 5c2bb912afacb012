"""What a change would do: references, selectors, policies, and the verdict over them."""

from typing import Any

import pytest

from models.prediction.documents import Document
from models.prediction.manifests import Manifests, declared_calls, read_manifests
from models.prediction.policies import Call, judge_call
from models.prediction.predict import predict
from models.prediction.references import references_in
from models.prediction.selectors import selects
from schemas.drift import DriftKind
from schemas.prediction import BaselineEdge, DeclaredCall, ForbiddenEdge, Location


def workload(name: str, labels: dict[str, str], env: dict[str, str] | None = None, namespace: str = "shop") -> Any:
    container = {"name": "main", "env": [{"name": key, "value": value} for key, value in (env or {}).items()]}
    return {
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}},
    }


def policy(spec: dict[str, Any], name: str = "p", namespace: str = "shop") -> Any:
    return {"kind": "NetworkPolicy", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def manifests_of(*values: Any) -> Manifests:
    return read_manifests([Document("change.yaml", value) for value in values])


WEB, CART, DB = workload("web", {"app": "web"}), workload("cart", {"app": "cart"}), workload("db", {"app": "db"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://cart:8080/items", [("cart", 8080)]),
        ("https://api.stripe.com", [("api.stripe.com", 443)]),
        ("postgres://user:secret@db.data.svc:5432/app", [("db.data.svc", 5432)]),
        ("redis-cart:6379", [("redis-cart", 6379)]),
        ("kafka-0.kafka:9092,kafka-1.kafka:9092", [("kafka-0.kafka", 9092), ("kafka-1.kafka", 9092)]),
        ("payment.shop.svc.cluster.local", [("payment.shop.svc.cluster.local", -1)]),
        ("cart", [("cart", -1)]),
        ("debug", []),
        ("12:30", []),
        ("image:v1.2", []),
        ("a sentence about cart and others", []),
        ("http://[::1]:80", [("::1", 80)]),
        ("mailto:someone@example.com", []),
    ],
)
def test_references_are_addresses_and_names_of_known_services(text: str, expected: list[tuple[str, int]]) -> None:
    assert [(one.host, one.port) for one in references_in(text, {"cart"}.__contains__)] == expected


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({}, None, True),
        ({"matchLabels": {"app": "web"}}, None, None),
        ({"matchLabels": {"app": "web"}}, {"app": "web", "x": "y"}, True),
        ({"matchLabels": {"app": "web", "x": "z"}}, {"app": "web", "x": "y"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}, {"app": "b"}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}, {}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, {}, True),
    ],
)
def test_selectors(selector: dict[str, Any], labels: dict[str, str] | None, expected: bool | None) -> None:
    assert selects(selector, labels) is expected


def test_without_policies_everything_is_allowed() -> None:
    assert judge_call(Call("shop/web", "shop/cart", 80, 6), manifests_of(WEB, CART)).allowed is True


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}, True),
        ({"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}, False),
        ({"from": [{"podSelector": {}}], "ports": [{"port": 80}]}, True),
        ({"from": [{"podSelector": {}}], "ports": [{"port": 81}]}, False),
        ({"from": [{"podSelector": {}}], "ports": [{"port": 70, "endPort": 90}]}, True),
        ({"ports": [{"port": 80, "protocol": "UDP"}]}, False),
        ({"ports": [{"port": "http"}]}, None),
        ({}, True),
        ({"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}]}, True),
        ({"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ops"}}}]}, False),
        ({"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}, None),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}, None),
    ],
)
def test_an_isolated_pod_takes_what_a_rule_allows(rule: dict[str, Any], expected: bool | None) -> None:
    manifests = manifests_of(WEB, CART, policy({"podSelector": {"matchLabels": {"app": "cart"}}, "ingress": [rule]}))
    assert judge_call(Call("shop/web", "shop/cart", 80, 6), manifests).allowed is expected


def test_policies_add_up_and_refuse_only_what_they_isolate_for_sure() -> None:
    deny = policy({"podSelector": {}, "policyTypes": ["Ingress"]}, "deny")
    allow = policy(
        {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]}, "allow"
    )
    call = Call("shop/web", "shop/cart", 80, 6)
    refused = judge_call(call, manifests_of(WEB, CART, deny))
    assert refused.allowed is False and refused.policy is not None and refused.policy.name == "deny"
    assert judge_call(call, manifests_of(WEB, CART, deny, allow)).allowed is True
    assert judge_call(call, manifests_of(CART, deny, allow)).allowed is None, "who web is, is not declared"
    of_cart = policy({"podSelector": {"matchLabels": {"app": "cart"}}, "policyTypes": ["Ingress"]})
    assert judge_call(call, manifests_of(WEB, of_cart)).allowed is None, "nor is what cart is"
    assert judge_call(Call("ops/web", "ops/cart", 80, 6), manifests_of(WEB, CART, deny)).allowed is True


def test_egress_rules_bind_the_caller() -> None:
    only_cart = policy(
        {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "cart"}}}]}],
        }
    )
    manifests = manifests_of(WEB, CART, DB, only_cart)
    assert judge_call(Call("shop/web", "shop/cart", 80, 6), manifests).allowed is True
    verdict = judge_call(Call("shop/web", "shop/db", 5432, 6), manifests)
    assert (verdict.allowed, verdict.direction) == (False, "egress")
    assert judge_call(Call("shop/web", "ext:stripe.com", 443, 6), manifests).allowed is False


def test_a_service_port_is_judged_as_the_pods_port() -> None:
    service = {
        "kind": "Service",
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"selector": {"app": "cart"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    rule = {"podSelector": {"matchLabels": {"app": "cart"}}, "ingress": [{"ports": [{"port": 8080}]}]}
    call = Call("shop/web", "shop/cart", 80, 6)
    assert judge_call(call, manifests_of(WEB, CART, service, policy(rule))).allowed is True
    assert judge_call(call, manifests_of(WEB, CART, policy(rule))).allowed is False


def test_calls_are_declared_by_environment_services_and_known_names() -> None:
    env = {
        "CART": "cart:80",
        "DB": "postgres://db",
        "OUT": "https://api.stripe.com/v1",
        "ME": "http://web",
        "N": "ops-db",
    }
    manifests = manifests_of(workload("web", {"app": "web"}, env), CART)
    calls = declared_calls(manifests, frozenset({"shop/ops-db"}))
    assert {(call.dst, call.port) for call in calls} == {
        ("shop/cart", 80),
        ("shop/db", 5432),
        ("ext:api.stripe.com", 443),
        ("shop/ops-db", -1),
    }
    assert {call.reason for call in calls if call.dst == "shop/cart"} == {"environment variable CART names cart:80"}


BASELINE = [
    BaselineEdge("shop/web", "shop/cart", 80, 6, 5_000),
    BaselineEdge("shop/cart", "shop/db", 5432, 6, 900),
]


def test_an_unchanged_graph_is_no_risk() -> None:
    report = predict(manifests_of(workload("web", {"app": "web"}, {"CART": "cart:80"}), CART), BASELINE)
    assert (report.risk, report.changes, report.drift_events) == (0, (), {})


def test_a_new_call_to_a_store_is_told_with_the_finding_it_would_be() -> None:
    report = predict(manifests_of(workload("web", {"app": "web"}, {"DB": "db:5432"})), BASELINE)
    (change,) = report.changes
    assert (change.effect, change.src, change.dst, change.port) == ("adds", "shop/web", "shop/db", 5432)
    assert change.drift_kinds == (DriftKind.NEW_EDGE,) and report.drift_events == {"new_edge": 1}
    assert "PostgreSQL" in change.reason and report.risk == change.risk == 45


def test_a_broken_edge_weighs_more_the_busier_it_is() -> None:
    only_db = policy({"podSelector": {"matchLabels": {"app": "cart"}}, "policyTypes": ["Ingress"]}, "closed")
    busy = predict(manifests_of(CART, WEB, only_db), BASELINE)
    (change,) = busy.changes
    assert (change.effect, change.drift_kinds) == ("breaks", (DriftKind.REMOVED_EDGE,))
    assert (
        "NetworkPolicy shop/closed would refuse calls from shop/web to shop/cart:80 (ingress, 5,000 calls"
        in change.reason
    )
    quiet = predict(manifests_of(CART, WEB, only_db), [BaselineEdge("shop/web", "shop/cart", 80, 6, 3)])
    assert quiet.risk < busy.risk


def test_a_call_its_own_policies_refuse_is_shadowed() -> None:
    closed = policy({"podSelector": {"matchLabels": {"app": "cart"}}, "policyTypes": ["Ingress"]}, "closed")
    report = predict(manifests_of(workload("batch", {"app": "batch"}, {"CART": "cart:80"}), CART, closed), BASELINE)
    assert {change.effect for change in report.changes if change.src == "shop/batch"} == {"adds", "shadows"}


def test_rules_are_globs() -> None:
    rule = ForbiddenEdge("no store from the web", "*/web", "*/db", 5432)
    call = DeclaredCall("shop/web", "shop/db", 5432, 6, "listed", Location("edges.jsonl", 3))
    report = predict(Manifests(), BASELINE, [call], [rule])
    assert [change.effect for change in report.changes] == ["violates", "adds"]
    assert report.changes[0].location == Location("edges.jsonl", 3)
    other = DeclaredCall("shop/api", "shop/db", 5432, 6, "listed", Location("edges.jsonl", 3))
    assert [c.effect for c in predict(Manifests(), BASELINE, [other], [rule]).changes] == ["adds"]


def test_more_changes_are_more_risk_and_never_less_than_the_worst() -> None:
    def calls(count: int) -> list[DeclaredCall]:
        return [DeclaredCall("shop/web", f"shop/new-{n}", 80, 6, "listed", Location("f")) for n in range(count)]

    risks = [predict(Manifests(), BASELINE, calls(count)).risk for count in (1, 2, 5, 40)]
    assert risks == sorted(risks) and risks[0] < risks[-1] <= 100


def test_what_cannot_be_told_is_said() -> None:
    report = predict(manifests_of(policy({"podSelector": {"matchLabels": {"app": "cart"}}, "ingress": []})), BASELINE)
    assert not report.changes and any("cannot be told" in note for note in report.notes)
    assert any("holds no edge" in note for note in predict(Manifests(), []).notes)


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "Deployment"},
        {"kind": "Deployment", "metadata": None},
        {
            "kind": "Deployment",
            "metadata": {"name": "x"},
            "spec": {"template": {"spec": {"containers": ["x", None, 3]}}},
        },
        {"kind": "NetworkPolicy", "metadata": {"name": "x"}, "spec": {"ingress": [None, 3], "podSelector": 7}},
        {"kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [None, {"port": "x"}], "selector": []}},
        {"kind": "List", "items": [None, {"kind": "List", "items": None}]},
        {"kind": "CronJob", "metadata": {"name": "x"}, "spec": {"jobTemplate": []}},
        {"kind": ["x"], "metadata": []},
    ],
)
def test_broken_objects_are_read_without_trust(value: Any) -> None:
    predict(read_manifests([Document("f", value)]), BASELINE)
