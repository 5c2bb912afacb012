"""Names of endpoints: the workload a record names, else what lies outside, else the bare address. Pure.

| name | what it is |
|---|---|
| ``namespace/name`` | a workload: the owner (Deployment, StatefulSet, Job, Service, ...), never one of its pods |
| ``cluster:namespace/name`` | the same, where the record or the configuration says which cluster |
| ``node:NAME`` | a Kubernetes node (host network) |
| ``reserved:NAME`` | what Cilium names so: host, remote-node, kube-apiserver, ... |
| ``ext:NAME`` | outside the estate: a registered domain, a cloud service (``ext:aws/s3``), a label |
| ``ext:unknown`` | the other end of half a call that does not name it |
| ``label:NAMESPACE/k=v,k2=v2`` | a pod by its labels, where none of them is its name; the inventory may name it |
| ``ip:ADDR`` | nothing in the record names it; the tenant's inventory may, later |

The kind of the owner is not part of the name: sources that do not know it must agree with those that do.
"""

import ipaddress
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from schemas.flow import MAX_NAME_BYTES
from schemas.ids import ADDRESS_PREFIX, EXTERNAL_PREFIX, LABEL_PREFIX, stable_hash
from schemas.tenant_log import IntColumn
from streams.sources.coded import Coded, Names, first_seen, in_order, names_of
from streams.sources.domains import registered
from streams.sources.remembered import Key, Remembered

NODE_PREFIX = "node:"
UNNAMED = ""
"""Name of an endpoint of which the record says nothing usable."""
UNKNOWN_PEER = EXTERNAL_PREFIX + "unknown"
"""Name of the other end of a call's half that does not say who that is; the other half does, if it is ever seen."""

_RESERVED_CLUSTERS = frozenset({"ip", "ext", "node", "reserved", "label", "net", "namespace"})
_HASH_CHARACTERS = 16
_KEPT_BYTES = MAX_NAME_BYTES - _HASH_CHARACTERS - 1

# Kubernetes draws suffixes from an alphabet without vowels (apimachinery pkg/util/rand, SafeEncodeString).
_SAFE = "[bcdfghjklmnpqrstvwxz2456789]"
_REPLICA_SET = re.compile(rf"(.+)-{_SAFE}{{8,10}}")
_DEPLOYMENT_POD = re.compile(rf"(.+)-{_SAFE}{{6,10}}-{_SAFE}{{5}}")
_CRON_JOB_POD = re.compile(rf"(.+)-\d{{8,10}}-{_SAFE}{{5}}")
_CRON_JOB = re.compile(r"(.+)-\d{8,10}")
_SUFFIXED_POD = re.compile(rf"(.+)-{_SAFE}{{5}}")
_ORDINAL_POD = re.compile(r"(.+)-\d{1,4}")
_POD_PATTERNS = (_CRON_JOB_POD, _DEPLOYMENT_POD, _SUFFIXED_POD, _ORDINAL_POD)
_SERVICE_HOST = re.compile(r"(?:[^.]+\.)?([^.]+)\.([^.]+)\.svc(?:\..+)?")
"""A Kubernetes service's DNS name, or that of one of its pods."""
_CANONICAL_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}", re.ASCII)


def bounded(name: str) -> str:
    """Return ``name`` in at most ``MAX_NAME_BYTES`` of UTF-8; a longer one keeps its start and gets a hash of all."""
    if len(name) * 4 <= MAX_NAME_BYTES:
        return name
    data = name.encode()
    if len(data) <= MAX_NAME_BYTES:
        return name
    return f"{data[:_KEPT_BYTES].decode(errors='ignore')}~{stable_hash(name)[:_HASH_CHARACTERS]}"


def workload(namespace: str, name: str, cluster: str | None = None) -> str:
    """Return the name of a workload; one without a namespace keeps an empty one out of its name."""
    base = f"{namespace}/{name}" if namespace else name
    if not cluster:
        return bounded(base)
    return bounded(f"{cluster}-cluster:{base}" if cluster in _RESERVED_CLUSTERS else f"{cluster}:{base}")


def owner_of_pod(pod: str) -> str:
    """Return the workload that a pod's name tells: suffixes of ReplicaSets, DaemonSets, Jobs, StatefulSets taken off.

    >>> owner_of_pod("cart-7848d6c4d5-th9v2"), owner_of_pod("redis-0"), owner_of_pod("nginx")
    ('cart', 'redis', 'nginx')
    """
    for pattern in _POD_PATTERNS:
        match = pattern.fullmatch(pod)
        if match is not None:
            return match[1]
    return pod


def owner_of(kind: str, name: str) -> str:
    """Return the workload behind an owner of a kind: of ReplicaSets, Jobs and pods, what stands above them.

    >>> owner_of("ReplicaSet", "cart-7848d6c4d5"), owner_of("Job", "backup-28435680"), owner_of("Deployment", "a-b")
    ('cart', 'backup', 'a-b')
    """
    if kind == "ReplicaSet":
        match = _REPLICA_SET.fullmatch(name)
    elif kind == "Job":
        match = _CRON_JOB.fullmatch(name)
    elif kind == "Pod":
        return owner_of_pod(name)
    else:
        return name
    return match[1] if match is not None else name


def outside_label(label: str) -> str:
    """Return the name of something outside that an operator or a cloud labelled: lower case, as it is."""
    cleaned = label.strip().rstrip(".").lower()
    return bounded(EXTERNAL_PREFIX + cleaned) if cleaned else UNNAMED


def outside(host: str) -> str:
    """Return the name of a host outside the estate: its registered domain or cloud service; an address stays one.

    >>> outside("API.eu.example.com."), outside("mine.s3.amazonaws.com"), outside("1.2.3.4")
    ('ext:example.com', 'ext:aws/s3', 'ip:1.2.3.4')
    """
    cleaned = host.strip().rstrip(".").lower()
    return address(cleaned) or outside_label(registered(cleaned))


_LABEL = re.compile(r"k8s:([^=]{1,317})=(.{0,63})", re.DOTALL)
_UNTELLING_PREFIXES = (
    *("io.cilium.", "io.kubernetes.", "topology.kubernetes.io/", "failure-domain.beta.kubernetes.io/"),
    *("batch.kubernetes.io/", "statefulset.kubernetes.io/", "apps.kubernetes.io/", "helm.sh/"),
)
_UNTELLING = frozenset(
    (
        *("pod-template-hash", "controller-revision-hash", "pod-template-generation", "rollouts-pod-template-hash"),
        *("job-name", "controller-uid", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"),
    )
)
"""Labels that change with every deploy, pod or zone, or that all pods of an operator have in common."""
_CLUSTER_LABEL = "io.cilium.k8s.policy.cluster"


def labelled(namespace: str, labels: Sequence[str], cluster: str | None = None) -> str:
    """Return the name of a pod by its labels, as Cilium writes them, or ``UNNAMED`` if none of them tells who it is.

    >>> labelled("shop", ["k8s:tier=web", "k8s:pod-template-hash=6c9d4d5f7b", "k8s:role=cart"])
    'label:shop/role=cart,tier=web'

    Args:
        cluster: goes among the labels, under Cilium's key, for those of the same name are others elsewhere.
    """
    matches = [match for match in map(_LABEL.fullmatch, labels) if match is not None]
    telling = {
        (match[1], match[2])
        for match in matches
        if match[1] not in _UNTELLING and not match[1].startswith(_UNTELLING_PREFIXES)
    }
    if not telling:
        return UNNAMED
    if cluster:
        telling.add((_CLUSTER_LABEL, cluster))
    return bounded(f"{LABEL_PREFIX}{namespace}/{','.join(map('='.join, sorted(telling)))}")


def normal_address(text: str) -> str | None:
    """Return an IP address in its normal text, IPv4 out of IPv6's mapping, or ``None`` for what is none.

    >>> normal_address("::ffff:10.0.0.1"), normal_address("2001:DB8:0::1"), normal_address("10.0.0.300")
    ('10.0.0.1', '2001:db8::1', None)
    """
    if _CANONICAL_IPV4.fullmatch(text):
        return text
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def is_private(text: str) -> bool:
    """Say whether an address is of a range that is never routed on the internet (RFC 1918, RFC 4193, loopback, ...)."""
    normal = normal_address(text)
    return normal is not None and ipaddress.ip_address(normal).is_private


def is_loopback(host: str) -> bool:
    """Say whether a host's name or address is the machine's, or the pod's, own."""
    normal = normal_address(host)
    if normal is None:
        return host.lower().rstrip(".") == "localhost"
    return ipaddress.ip_address(normal).is_loopback or ipaddress.ip_address(normal).is_unspecified


def address(text: str | None) -> str:
    """Return ``ip:ADDR``, or ``UNNAMED`` for what is no address."""
    normal = normal_address(text) if text else None
    return UNNAMED if normal is None else ADDRESS_PREFIX + normal


def host_name(host: str, namespace: str = "", cluster: str | None = None) -> str:
    """Return the name of a host: a Kubernetes service's, an address, or of what lies outside.

    One without a dot is a service in the caller's own namespace, as resolvers look it up.

    Args:
        namespace, cluster: the caller's, where known.

    >>> host_name("cart.shop.svc.cluster.local"), host_name("cart", "shop"), host_name("api.example.com")
    ('shop/cart', 'shop/cart', 'ext:example.com')
    """
    match = _SERVICE_HOST.fullmatch(host.rstrip("."))
    if match is not None:
        return workload(match[2], match[1], cluster)
    if normal_address(host) is not None:
        return address(host)
    label = host.rstrip(".")
    if "." in label:
        return outside(host)
    return workload(namespace, label, cluster) if label else UNNAMED


def split_port(text: str) -> tuple[str, int]:
    """Split ``ADDR:PORT`` or ``[ADDR]:PORT``; the port is -1 where there is none.

    >>> split_port("10.0.0.1:80"), split_port("[::1]:443"), split_port("::1"), split_port("db")
    (('10.0.0.1', 80), ('::1', 443), ('::1', -1), ('db', -1))
    """
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        return text.strip("[]"), -1
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535):
        return text, -1
    return host.strip("[]"), int(port)


class Naming(Remembered[Key, str]):
    """Names of endpoints by what records say of them."""


def code_names(naming: Naming[Key], *columns: Sequence[Key]) -> tuple[list[IntColumn], Names]:
    """Return the names of endpoints as codes, one column for each given, and the names: all different."""
    sizes = [len(column) for column in columns]
    key_of, keys = first_seen(chain(*columns), sum(sizes))
    name_of, names = first_seen(map(naming.__getitem__, keys), len(keys))
    return np.split(name_of[key_of], np.cumsum(sizes)[:-1]), names_of(names)


def name_coded(naming: Naming[Any], *ends: Sequence[Coded]) -> tuple[list[IntColumn], Names]:
    """Return the names of endpoints as `code_names` does, by keys whose parts are coded columns without nulls.

    Args:
        ends: of each column of endpoints the parts of its keys; a single part is the key itself.
    """
    columns, keys = [], list[Any]()
    for parts in ends:
        key, size = parts[0].codes, len(parts[0].values)
        for part in parts[1:]:
            if size * len(part.values) >= 1 << 62:
                key, size = in_order(key)
            key, size = key * len(part.values) + part.codes, size * len(part.values)
        dense, distinct = in_order(key)
        first = np.empty(distinct, dtype=np.int64)
        first[dense[::-1]] = np.arange(len(dense) - 1, -1, -1)  # the last assignment wins: each key's first row
        values = [part.values[part.codes[first]].tolist() for part in parts]
        columns.append(dense + len(keys))
        keys.extend(values[0] if len(values) == 1 else zip(*values, strict=True))
    name_of, names = first_seen(map(naming.__getitem__, keys), len(keys))
    return [name_of[column] for column in columns], names_of(names)
