"""Names of endpoints: owners instead of pods, one text per address, bounded."""

import pytest

from schemas.flow import MAX_NAME_BYTES
from schemas.ids import is_external
from streams.sources.identity import (
    UNNAMED,
    Naming,
    address,
    bounded,
    code_names,
    is_private,
    labelled,
    normal_address,
    outside,
    outside_label,
    owner_of,
    owner_of_pod,
    split_port,
    workload,
)


@pytest.mark.parametrize(
    ("pod", "owner"),
    [
        ("cart-7848d6c4d5-th9v2", "cart"),
        ("payment-service-v2-6c9d4d5f7b-x2k4q", "payment-service-v2"),
        ("node-exporter-x2k4q", "node-exporter"),
        ("redis-0", "redis"),
        ("kafka-broker-12", "kafka-broker"),
        ("backup-28435680-x2k4q", "backup"),
        ("nginx", "nginx"),
        ("mysql", "mysql"),
        ("kube-proxy", "kube-proxy"),
        ("etcd-control-plane", "etcd-control-plane"),
        ("-x2k4q", "-x2k4q"),
    ],
)
def test_a_pod_is_named_by_its_owner(pod: str, owner: str) -> None:
    assert owner_of_pod(pod) == owner == owner_of("Pod", pod)


def test_owners_that_stand_between_are_looked_through() -> None:
    assert owner_of("ReplicaSet", "cart-7848d6c4d5") == "cart"
    assert owner_of("ReplicaSet", "cart") == "cart"
    assert owner_of("Job", "backup-28435680") == "backup"
    assert owner_of("Deployment", "cart-7848d6c4d5") == "cart-7848d6c4d5"
    assert owner_of("StatefulSet", "redis-0") == "redis-0"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:0A00:0001", "10.0.0.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("010.0.0.1", None),
        ("10.0.0", None),
        ("10.0.0.256", None),
        ("10.0.0.1\n", None),
        ("10.0.0.1.", None),
        ("", None),
        ("localhost", None),
    ],
)
def test_an_address_has_one_text(text: str, normal: str | None) -> None:
    assert normal_address(text) == normal
    assert address(text) == (UNNAMED if normal is None else f"ip:{normal}")


def test_workloads_carry_namespace_and_cluster() -> None:
    assert workload("shop", "cart") == "shop/cart"
    assert workload("shop", "cart", "eu-1") == "eu-1:shop/cart"
    assert workload("", "cart") == "cart"


@pytest.mark.parametrize("cluster", ["ext", "ip", "node", "reserved", "label"])
def test_no_cluster_can_pass_for_another_kind_of_name(cluster: str) -> None:
    assert workload("shop", "cart", cluster) == f"{cluster}-cluster:shop/cart"
    assert not is_external(workload("shop", "cart", cluster))


def test_what_lies_outside_has_one_spelling() -> None:
    assert outside("API.Example.com.") == outside("example.com") == "ext:example.com"
    assert outside("gateway") == "ext:gateway"
    assert outside("::ffff:1.2.3.4") == "ip:1.2.3.4"
    assert is_external(outside_label("aws/S3")) and outside_label("aws/S3") == outside("mine.s3.amazonaws.com")
    assert outside_label("API.Example.com") == "ext:api.example.com"
    assert outside(" . ") == outside_label(" . ") == UNNAMED


CILIUM_LABELS = [
    "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
    "k8s:io.cilium.k8s.policy.cluster=default",
    "k8s:io.kubernetes.pod.namespace=shop",
    "k8s:topology.kubernetes.io/zone=eu-1a",
    "k8s:pod-template-hash=6c9d4d5f7b",
    "k8s:controller-revision-hash=85d5f8f9c",
    "k8s:statefulset.kubernetes.io/pod-name=db-0",
    "k8s:app.kubernetes.io/version=1.2.3",
]


def test_a_pod_of_which_only_labels_are_known_is_named_by_those_that_last() -> None:
    telling = ["k8s:tier=web", "k8s:example.com/role=cart"]
    name = labelled("shop", CILIUM_LABELS + telling)
    assert name == "label:shop/example.com/role=cart,tier=web" == labelled("shop", telling[::-1])
    assert labelled("shop", CILIUM_LABELS) == labelled("shop", ["reserved:world", "cidr:1.2.3.4/32", "x"]) == UNNAMED
    assert labelled("shop", telling, "eu") == (
        "label:shop/example.com/role=cart,io.cilium.k8s.policy.cluster=eu,tier=web"
    )
    long = labelled("shop", [f"k8s:key{n}={n}" for n in range(100)])
    assert len(long.encode()) == MAX_NAME_BYTES and long.startswith("label:shop/key0=0,key1=1,key10=10")


def test_long_names_are_bounded_and_stay_apart() -> None:
    one, other = bounded("é" * 300 + "a"), bounded("é" * 300 + "b")
    assert len(one.encode()) <= MAX_NAME_BYTES and one != other and one == bounded("é" * 300 + "a")
    assert bounded("x" * MAX_NAME_BYTES) == "x" * MAX_NAME_BYTES
    assert len(workload("n" * 253, "w" * 253, "c" * 253).encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[::1]:443", ("::1", 443)),
        ("::1", ("::1", -1)),
        ("db", ("db", -1)),
        ("db:http", ("db:http", -1)),
        ("db:99999", ("db:99999", -1)),
        ("", ("", -1)),
    ],
)
def test_ports_are_split_off(text: str, parts: tuple[str, int]) -> None:
    assert split_port(text) == parts


def test_private_addresses_are_known() -> None:
    assert is_private("10.1.2.3") and is_private("::ffff:192.168.0.1") and is_private("fd00::1")
    assert not is_private("8.8.8.8") and not is_private("nonsense")


def test_equal_names_get_equal_codes_whatever_they_were_made_of() -> None:
    naming: Naming[str] = Naming(owner_of_pod)
    (src, dst), names = code_names(naming, ["a-7848d6c4d5-th9v2", "b-0", "a-7848d6c4d5-x2k4q"], ["b-1", "c", "a"])
    assert [names[code] for code in src] == ["a", "b", "a"]
    assert [names[code] for code in dst] == ["b", "c", "a"]
    assert sorted(names) == ["a", "b", "c"]
    assert dict(naming)["b-1"] == "b"


def test_names_without_rows_are_fine() -> None:
    (src, dst), names = code_names(Naming(owner_of_pod), [], [])
    assert len(src) == len(dst) == len(names) == 0
