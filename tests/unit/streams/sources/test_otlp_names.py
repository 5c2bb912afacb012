"""Whom a span's resource and attributes name."""

import pytest

from streams.sources.otlp_names import (
    Peer,
    authority_of,
    host_of_cluster,
    name_of_caller,
    name_of_peer,
    owner_of_resource,
)

POD = {"k8s.namespace.name": "shop", "k8s.pod.name": "cart-7848d6c4d5-th9v2", "service.name": "cart-svc"}
NOBODY = Peer("", "", "", "", "", False, "shop", "")


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"service.name": "cart"}, "cart"),
        ({"service.name": "cart", "service.namespace": "web"}, "web/cart"),
        ({"service.name": "cart", "k8s.namespace.name": "shop"}, "shop/cart"),
        ({**POD, "k8s.deployment.name": "cart"}, "shop/cart"),
        ({**POD, "k8s.statefulset.name": "db"}, "shop/db"),
        ({**POD, "k8s.daemonset.name": "agent"}, "shop/agent"),
        ({**POD, "k8s.job.name": "backup-28435680"}, "shop/backup"),
        ({**POD, "k8s.job.name": "backup-28435680", "k8s.cronjob.name": "nightly"}, "shop/nightly"),
        ({**POD, "k8s.replicaset.name": "cart-7848d6c4d5"}, "shop/cart"),
        (POD, "shop/cart"),
        ({"k8s.pod.name": "cart-0", "service.name": "cart-svc"}, "cart-svc"),
        ({"k8s.deployment.name": "cart", "service.namespace": "web", "service.name": "x"}, "web/cart"),
        ({**POD, "k8s.deployment.name": "cart", "k8s.cluster.name": "eu"}, "eu:shop/cart"),
        ({"service.name": "unknown_service"}, ""),
        ({"service.name": "unknown_service:java", "service.namespace": "web"}, ""),
        ({"service.name": "unknown_services"}, "unknown_services"),
        ({}, ""),
    ],
)
def test_a_resource_names_its_workload(attributes: dict[str, str], name: str) -> None:
    assert owner_of_resource(attributes, None).name == name


def test_the_cluster_can_be_told_or_left_out() -> None:
    attributes = {"service.name": "cart", "k8s.cluster.name": "eu"}
    assert [owner_of_resource(attributes, cluster).name for cluster in (None, "us", "-")] == [
        "eu:cart",
        "us:cart",
        "cart",
    ]


def test_the_node_keeps_the_clock() -> None:
    hosts = {"container.id": "c", "host.name": "h", "k8s.node.name": "n"}
    assert owner_of_resource(hosts, None).host == "n"
    assert owner_of_resource({k: v for k, v in hosts.items() if k != "k8s.node.name"}, None).host == "h"
    assert owner_of_resource({"container.id": "c"}, None).host == "c"
    assert owner_of_resource({}, None).host is None


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({}, "ext:unknown"),
        ({"service": "ledger"}, "shop/ledger"),
        ({"service": "ledger", "service_namespace": "bank"}, "bank/ledger"),
        ({"service": "Ledger_2"}, "shop/Ledger_2"),
        ({"service": "ledger", "host": "10.0.0.1"}, "shop/ledger"),
        ({"service": "ledger.bank.svc"}, "bank/ledger"),
        ({"service": "Stripe API"}, "ext:stripe api"),
        ({"service": "10.0.0.1"}, "ip:10.0.0.1"),
        ({"service": "localhost", "host": "cart"}, "shop/cart"),
        ({"host": "cart"}, "shop/cart"),
        ({"host": "Cart"}, "shop/cart"),
        ({"host": "cart", "cluster": "eu"}, "eu:shop/cart"),
        ({"host": "cart.web.svc.cluster.local", "cluster": "eu"}, "eu:web/cart"),
        ({"host": "redis-0.redis.web.svc.cluster.local"}, "web/redis"),
        ({"host": "api.eu.example.com"}, "ext:example.com"),
        ({"host": "::ffff:10.0.0.1"}, "ip:10.0.0.1"),
        ({"host": "10.0.0.1", "system": "postgresql", "space": "orders"}, "ip:10.0.0.1"),
        ({"host": "localhost", "system": "redis"}, "ext:redis"),
        ({"host": "127.0.0.1"}, "ext:unknown"),
        ({"host": "::1"}, "ext:unknown"),
        ({"host": "0.0.0.0"}, "ext:unknown"),
        ({"host": "a b"}, "ext:unknown"),
        ({"host": "x" * 300}, "ext:unknown"),
        ({"host": "."}, "ext:unknown"),
        ({"system": "postgresql", "space": "Orders"}, "ext:postgresql/orders"),
        ({"system": "mongodb"}, "ext:mongodb"),
        ({"is_message": True, "host": "broker-1", "system": "kafka", "space": "orders"}, "ext:kafka/orders"),
        ({"is_message": True, "host": "broker-1"}, "shop/broker-1"),
        ({"is_message": True, "service": "mailer", "system": "kafka"}, "shop/mailer"),
        ({"is_message": True}, "ext:unknown"),
    ],
)
def test_a_caller_names_whom_it_called_as_well_as_it_can(said: dict[str, str | bool], name: str) -> None:
    assert name_of_peer(NOBODY._replace(**said)) == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("https://user:secret@api.example.com/v1?next=http://x:1/", "api.example.com", 443),
        ("http://cart:7070/a@b", "cart", 7070),
        ("http://[2001:db8::1]:8080/", "2001:db8::1", 8080),
        ("http://[::1]", "::1", 80),
        ("2001:db8::1", "2001:db8::1", -1),
        ("10.0.0.1:9090", "10.0.0.1", 9090),
        ("cart:99999", "cart", -1),
        ("dns:///cart:7070", "cart", 7070),
        ("grpc://cart", "cart", -1),
        ("/tmp/my.sock", "", -1),
        ("//cart/x", "", -1),
        ("", "", -1),
        ("http://", "", -1),
    ],
)
def test_hosts_and_ports_of_urls_and_addresses(text: str, host: str, port: int) -> None:
    assert authority_of(text) == (host, port)


def test_clusters_of_envoy_are_hosts() -> None:
    assert host_of_cluster("outbound|9080|v1|reviews.default.svc.cluster.local") == "reviews.default.svc.cluster.local"
    assert [host_of_cluster(name) for name in ("frontend", "PassthroughCluster", "inbound|8080||")] == [
        "frontend",
        "",
        "",
    ]


def test_a_caller_that_is_seen_from_the_callee_alone_is_its_address() -> None:
    callers = [
        "203.0.113.7",
        "203.0.113.7:4711",
        "[2001:db8::1]:443",
        "web.example.com",
        "localhost",
        "127.0.0.1",
        None,
    ]
    assert [name_of_caller(text) for text in callers] == [
        *("ip:203.0.113.7", "ip:203.0.113.7", "ip:2001:db8::1"),
        *["ext:unknown"] * 4,
    ]
