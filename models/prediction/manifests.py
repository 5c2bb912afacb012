"""Kubernetes objects of a change: what each workload is called, what it calls, what its policies say. Pure.

Takes documents as YAML gave them. What is no object we know is left alone; what is broken is told, never guessed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.prediction.documents import Document, mapping, sequence, texts
from models.prediction.references import Reference, references_in
from models.prediction.selectors import NAMESPACE_NAME, selects
from schemas.ids import EXTERNAL_PREFIX
from schemas.prediction import DeclaredCall, Location

_TEMPLATED = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "ReplicationController")
_PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_MAX_TEXT = 65_536


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload as the change declares it. ``texts``: what it is told, each with what holds it."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    texts: tuple[tuple[str, str, Location], ...]
    location: Location

    @property
    def service(self) -> str:
        """Its name in the service graph."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Service:
    """A Kubernetes Service. ``ports``: number to (target, protocol), the target a number, a name or ``None``."""

    namespace: str
    name: str
    selector: Mapping[str, str]
    ports: Mapping[int, tuple[int | str | None, int]]
    external_name: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """A NetworkPolicy. ``spec`` as declared."""

    namespace: str
    name: str
    spec: Mapping[str, Any]
    location: Location


@dataclass(slots=True)
class Manifests:
    """All that the files of a change declare."""

    workloads: list[Workload] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)
    policies: list[Policy] = field(default_factory=list)
    namespaces: dict[str, Mapping[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def labels_of(self, service: str) -> Mapping[str, str] | None:
        """Return the pod labels of a workload by its name in the graph; ``None`` if the change does not declare it."""
        return next((one.labels for one in self.workloads if one.service == service), None)

    def namespace_labels(self, namespace: str) -> Mapping[str, str] | None:
        """Return a namespace's labels: what the API server gives it, and what the change declares if it does."""
        declared = self.namespaces.get(namespace)
        return None if declared is None else {NAMESPACE_NAME: namespace, **declared}


def read_manifests(documents: Sequence[Document], default_namespace: str = "default") -> Manifests:
    """Read the objects of a change; lists (``kind: List``) are taken apart."""
    found = Manifests()
    flat = [one for document in documents for one in _flattened(document)]
    maps = {
        (_namespace(one.value, default_namespace), _name(one.value)): one
        for one in flat
        if one.value.get("kind") == "ConfigMap"
    }
    for document in flat:
        kind, namespace = document.value.get("kind"), _namespace(document.value, default_namespace)
        if not _name(document.value):
            if kind:
                found.notes.append(f"{document.file}: a {kind} without a name was left out.")
            continue
        if kind in _TEMPLATED or kind in ("Pod", "CronJob"):
            found.workloads.append(_workload(document, str(kind), namespace, maps))
        elif kind == "Service":
            found.services.append(_service(document, namespace))
        elif kind == "NetworkPolicy":
            spec = mapping(document.value.get("spec"))
            found.policies.append(Policy(namespace, _name(document.value), spec, document.location()))
        elif kind == "Namespace":
            found.namespaces[_name(document.value)] = texts(mapping(document.value.get("metadata")).get("labels"))
    return found


def declared_calls(manifests: Manifests, known: frozenset[str]) -> list[DeclaredCall]:
    """Return the calls that workloads are configured to make.

    Args:
        known: services of the learned graph: a Service that the change does not declare is the one of that name.
    """
    calls: dict[tuple[str, str, int, int], DeclaredCall] = {}
    for workload in manifests.workloads:
        resolver = _Resolver(manifests, known, workload.namespace)
        for holder, text, location in workload.texts:
            for reference in references_in(text[:_MAX_TEXT], resolver.is_service):
                for dst, port, protocol in resolver.resolve(reference):
                    if dst != workload.service:
                        reason = f"{holder} names {reference.host}" + (
                            f":{reference.port}" if reference.port > 0 else ""
                        )
                        call = DeclaredCall(workload.service, dst, port, protocol, reason, location)
                        calls.setdefault((call.src, dst, port, protocol), call)
    return list(calls.values())


class _Resolver:
    """Hosts to nodes of the service graph, as DNS in a namespace resolves them."""

    def __init__(self, manifests: Manifests, known: frozenset[str], namespace: str) -> None:
        self._manifests, self._known, self._namespace = manifests, known, namespace
        self._services = {(one.namespace, one.name): one for one in manifests.services}

    def is_service(self, host: str) -> bool:
        """Say whether a bare host is a Service that the change declares, or a service that was learned."""
        name, namespace = self._split(host)
        return (namespace, name) in self._services or f"{namespace}/{name}" in self._known

    def _split(self, host: str) -> tuple[str, str]:
        parts = host.rstrip(".").split(".")
        if len(parts) == 1:
            return parts[0], self._namespace
        if len(parts) == 2 or parts[2] == "svc":
            return parts[0], parts[1]
        return host, ""

    def resolve(self, reference: Reference) -> Iterator[tuple[str, int, int]]:
        """Yield ``(service, port, protocol)`` of a reference; of a Service with several workloads, each."""
        host = reference.host
        name, namespace = self._split(host)
        service = self._services.get((namespace, name))
        if service is not None:
            yield from self._behind(service, reference.port)
        elif f"{namespace}/{name}" in self._known or ".svc" in host:
            yield f"{namespace}/{name}", reference.port, 6
        elif host in ("localhost", "127.0.0.1", "::1", "0.0.0.0"):
            return
        elif "." in host:
            yield EXTERNAL_PREFIX + host.rstrip("."), reference.port, 6
        elif reference.port > 0:
            yield f"{self._namespace}/{host}", reference.port, 6

    def _behind(self, service: Service, port: int) -> Iterator[tuple[str, int, int]]:
        if service.external_name:
            yield EXTERNAL_PREFIX + service.external_name, port, 6
            return
        _, protocol = service.ports.get(port, (None, 6))
        workloads = [
            one
            for one in self._manifests.workloads
            if service.selector
            and one.namespace == service.namespace
            and selects({"matchLabels": service.selector}, one.labels)
        ]
        if port < 0 and len(service.ports) == 1:
            ((port, (_, protocol)),) = service.ports.items()
        for workload in workloads:
            yield workload.service, port, protocol
        if not workloads:
            yield f"{service.namespace}/{service.name}", port, protocol


def target_port(manifests: Manifests, dst: str, port: int) -> int:
    """Return the port that a pod gets a call on which was made to a Service's; -1 where a name stands for it."""
    for service in manifests.services:
        workload = next((one for one in manifests.workloads if one.service == dst), None)
        if workload is None or service.namespace != workload.namespace or port not in service.ports:
            continue
        if service.selector and selects({"matchLabels": service.selector}, workload.labels):
            target = service.ports[port][0]
            return port if target is None else target if isinstance(target, int) else -1
    return port


def _flattened(document: Document) -> Iterator[Document]:
    if document.value.get("kind") == "List":
        for item in sequence(document.value.get("items")):
            if isinstance(item, Mapping):
                yield from _flattened(Document(document.file, item))
    else:
        yield document


def _workload(document: Document, kind: str, namespace: str, maps: Mapping[tuple[str, str], Document]) -> Workload:
    spec = mapping(document.value.get("spec"))
    if kind == "CronJob":
        spec = mapping(mapping(spec.get("jobTemplate")).get("spec"))
    template = document.value if kind == "Pod" else mapping(spec.get("template"))
    pod = mapping(template.get("spec"))
    told: list[tuple[str, str, Location]] = []
    for group in ("initContainers", "containers"):
        for container in sequence(pod.get(group)):
            if isinstance(container, Mapping):
                told += _texts_of(document, container, namespace, maps)
    told += _mounted(pod, namespace, maps)
    labels = texts(mapping(template.get("metadata")).get("labels"))
    return Workload(namespace, _name(document.value), labels, tuple(told), document.location())


def _texts_of(
    document: Document, container: Mapping[str, Any], namespace: str, maps: Mapping[tuple[str, str], Document]
) -> Iterator[tuple[str, str, Location]]:
    for variable in sequence(container.get("env")):
        if not isinstance(variable, Mapping):
            continue
        name = str(variable.get("name", ""))
        if isinstance(variable.get("value"), str):
            yield f"environment variable {name}", variable["value"], document.location(variable)
        reference = mapping(mapping(variable.get("valueFrom")).get("configMapKeyRef"))
        held = maps.get((namespace, str(reference.get("name", ""))))
        if held is not None:
            text = mapping(held.value.get("data")).get(str(reference.get("key", "")))
            if isinstance(text, str):
                yield f"environment variable {name}", text, held.location()
    for source in sequence(container.get("envFrom")):
        held = maps.get((namespace, str(mapping(mapping(source).get("configMapRef")).get("name", ""))))
        if held is not None:
            yield from _config(held)
    words = [str(one) for key in ("command", "args") for one in sequence(container.get(key))]
    for word in words:
        yield (
            "argument",
            word.partition("=")[2] if word.startswith("-") and "=" in word else word,
            document.location(container),
        )


def _mounted(
    pod: Mapping[str, Any], namespace: str, maps: Mapping[tuple[str, str], Document]
) -> Iterator[tuple[str, str, Location]]:
    for volume in sequence(pod.get("volumes")):
        held = maps.get((namespace, str(mapping(mapping(volume).get("configMap")).get("name", ""))))
        if held is not None:
            yield from _config(held)


def _config(held: Document) -> Iterator[tuple[str, str, Location]]:
    for key, text in mapping(held.value.get("data")).items():
        if isinstance(text, str):
            yield f"{key} of ConfigMap {_name(held.value)}", text, held.location()


def _service(document: Document, namespace: str) -> Service:
    spec = mapping(document.value.get("spec"))
    ports: dict[int, tuple[int | str | None, int]] = {}
    for one in sequence(spec.get("ports")):
        number = mapping(one).get("port")
        if isinstance(number, int):
            target = mapping(one).get("targetPort")
            protocol = _PROTOCOL_NUMBERS.get(str(mapping(one).get("protocol", "TCP")), 6)
            ports[number] = (target if isinstance(target, int | str) else None, protocol)
    selector = texts(spec.get("selector"))
    external = spec.get("externalName") if spec.get("type") == "ExternalName" else None
    return Service(namespace, _name(document.value), selector, ports, str(external or ""))


def _name(value: Mapping[str, Any]) -> str:
    return str(mapping(value.get("metadata")).get("name") or "")


def _namespace(value: Mapping[str, Any], default: str) -> str:
    return str(mapping(value.get("metadata")).get("namespace") or default)
