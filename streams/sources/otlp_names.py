"""Who the ends of a span are: its resource's workload, and whom its attributes name. Pure.

A span knows its own end well. Of the other it has what the client was told to call: a service name, a host, an address,
or only the kind of database or the topic. The other half of the call, paired later, knows better.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from streams.sources.identity import (
    UNKNOWN_PEER,
    UNNAMED,
    address,
    host_name,
    is_loopback,
    normal_address,
    outside_label,
    owner_of,
    owner_of_pod,
    workload,
)

_OWNERS = (
    ("k8s.deployment.name", "Deployment"),
    ("k8s.statefulset.name", "StatefulSet"),
    ("k8s.daemonset.name", "DaemonSet"),
    ("k8s.cronjob.name", "CronJob"),
    ("k8s.job.name", "Job"),
    ("k8s.replicaset.name", "ReplicaSet"),
)
_HOSTS = ("k8s.node.name", "host.name", "container.id")
_NAMESPACE, _CLUSTER, _POD = "k8s.namespace.name", "k8s.cluster.name", "k8s.pod.name"
_SERVICE, _SERVICE_NAMESPACE = "service.name", "service.namespace"
_NO_SERVICE = "unknown_service"
"""What SDKs call a service that has no name; followed by ``:`` and the executable's."""

RESOURCE_KEYS = frozenset(
    {_NAMESPACE, _CLUSTER, _POD, _SERVICE, _SERVICE_NAMESPACE, *_HOSTS, *(key for key, _ in _OWNERS)}
)
"""Attributes of resources that are used; all are text."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a span is.

    Attributes:
        name: its workload, ``UNNAMED`` where nothing names it.
        namespace, cluster: where it runs, empty where unknown: a host name without a dot is looked up there.
        host: whose clock its times are by.
    """

    name: str
    namespace: str
    cluster: str
    host: str | None


def owner_of_resource(attributes: Mapping[str, str], cluster: str | None) -> Owner:
    """Return whose spans a resource's are.

    The workload that Kubernetes knows comes before ``service.name``, which is what its developers call it: other
    sources know the same workload by the former.

    Args:
        cluster: instead of ``k8s.cluster.name``; ``-`` is none.
    """
    where = attributes.get(_CLUSTER, "") if cluster is None else "" if cluster == "-" else cluster
    in_kubernetes = attributes.get(_NAMESPACE, "")
    namespace = in_kubernetes or attributes.get(_SERVICE_NAMESPACE, "")
    host = next((attributes[key] for key in _HOSTS if attributes.get(key)), None)
    name = next((owner_of(kind, attributes[key]) for key, kind in _OWNERS if attributes.get(key)), "")
    if not name and in_kubernetes and attributes.get(_POD):
        name = owner_of_pod(attributes[_POD])
    if not name:
        namespace = attributes.get(_SERVICE_NAMESPACE, "") or in_kubernetes
        name = attributes.get(_SERVICE, "")
        if name == _NO_SERVICE or name.startswith(_NO_SERVICE + ":"):
            name = ""
    return Owner(workload(namespace, name, where) if name else UNNAMED, in_kubernetes or namespace, where, host)


# -- the other end -----------------------------------------------------------------------------------------------------

_AUTHORITY = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.-]*):/{2,3})?(?:[^/?#@]*@)?(\[[^\]/]*\]|[^/?#:\[\]]+)(?::(\d{1,5}))?(?:[/?#].*)?",
    re.DOTALL | re.ASCII,
)
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PLAIN_SERVICE = re.compile(r"[A-Za-z0-9_-]+")
_MAX_HOST = 255
_NO_PORT = -1

Authority = tuple[str, int]


def authority_of(text: str) -> Authority:
    """Return host and port of a URL or of ``HOST:PORT``, the host empty where there is none; -1 is no port.

    >>> authority_of("https://u:pw@api.example.com/v1?x=1"), authority_of("dns:///cart:8080"), authority_of("/a.sock")
    (('api.example.com', 443), ('cart', 8080), ('', -1))
    """
    if normal_address(text) is not None:
        return text, _NO_PORT
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return "", _NO_PORT
    scheme, host, port = match.groups()
    known = int(port) if port else _DEFAULT_PORTS.get((scheme or "").lower(), _NO_PORT)
    return host.strip("[]"), known if known <= 65_535 else _NO_PORT


_NOWHERE = ("PassthroughCluster", "BlackHoleCluster")


def host_of_cluster(name: str) -> str:
    """Return the host that a cluster of Envoy's stands for, empty where it is none: Istio's, else as operators call it.

    >>> host_of_cluster("outbound|9080||reviews.default.svc.cluster.local"), host_of_cluster("frontend")
    ('reviews.default.svc.cluster.local', 'frontend')
    """
    return "" if name in _NOWHERE else name.rpartition("|")[2]


class Peer(NamedTuple):
    """What a caller's span says of the callee. Texts are empty where it says nothing.

    Attributes:
        service, service_namespace: what the callee is called.
        host: a host's name or address.
        system, space: kind and name of a database, or of a messaging system and what a message was sent to.
        is_message: nobody in particular is called.
        namespace, cluster: the caller's.
    """

    service: str
    service_namespace: str
    host: str
    system: str
    space: str
    is_message: bool
    namespace: str
    cluster: str


def name_of_peer(peer: Peer) -> str:
    """Return the name of the callee.

    A message goes to a topic, whichever broker takes it. A database without an address is its kind and its name: few,
    and configured, unlike statements and tables.
    """
    named = ""
    if peer.service:
        named = _name_of_service(peer)
    if not named and not peer.is_message:
        named = _name_of_host(peer)
    if not named and peer.system:
        named = system_name(peer.system, peer.space)
    if not named and peer.is_message:
        named = _name_of_host(peer)
    return named or UNKNOWN_PEER


def system_name(system: str, space: str) -> str:
    """Return the name of a database, or of a topic or queue."""
    return outside_label(f"{system}/{space}" if space else system)


def _name_of_service(peer: Peer) -> str:
    if "." in peer.service or is_loopback(peer.service) or normal_address(peer.service) is not None:
        return _named_host(peer.service, peer)
    if _PLAIN_SERVICE.fullmatch(peer.service):
        return workload(peer.service_namespace or peer.namespace, peer.service, peer.cluster)
    return outside_label(peer.service)


def _name_of_host(peer: Peer) -> str:
    return _named_host(peer.host, peer) if peer.host else UNNAMED


def _named_host(host: str, peer: Peer) -> str:
    if is_loopback(host):
        return UNNAMED  # a sidecar, or a tunnel: whoever is behind it
    if normal_address(host) is None and (len(host) > _MAX_HOST or not _HOST.fullmatch(host)):
        return UNNAMED
    return host_name(host.lower(), peer.namespace, peer.cluster)


def name_of_caller(text: str | None) -> str:
    """Return the name of whoever called a root: an address, for the names of clients are whatever they claim."""
    host = authority_of(text)[0] if text else ""
    return UNKNOWN_PEER if is_loopback(host) else address(host) or UNKNOWN_PEER
