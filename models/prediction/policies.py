"""NetworkPolicies of Kubernetes against the calls of a service graph. Pure.

Source: Kubernetes API, ``networking.k8s.io/v1``. Policies only allow, and add up. A pod that some policy of a direction
selects is isolated in that direction: then a call needs a rule that allows it, at the caller (egress) and at the callee
(ingress). Replies are always allowed. Labels of workloads that the change does not declare are unknown; what hangs on
them is unknown too, and is said to be.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.prediction.documents import mapping, sequence
from models.prediction.manifests import Manifests, Policy, target_port
from models.prediction.selectors import NAMESPACE_NAME, all_of, any_of, selects
from schemas.ids import is_external

_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_ADDRESS_PREFIX = "ip:"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What policies say of a call: ``None`` where it cannot be told. ``policy`` is the one that refuses."""

    allowed: bool | None
    policy: Policy | None = None
    direction: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A call by the names of the service graph; port and protocol -1 where unknown."""

    src: str
    dst: str
    port: int
    protocol: int


def judge_call(call: Call, manifests: Manifests) -> Verdict:
    """Say whether the policies of a change allow a call."""
    unknown = False
    for direction, at, peer in (("Egress", call.src, call.dst), ("Ingress", call.dst, call.src)):
        if is_external(at):
            continue
        verdict = _judge_direction(direction, at, peer, call, manifests)
        if verdict.allowed is False:
            return verdict
        unknown = unknown or verdict.allowed is None
    return Verdict(None if unknown else True)


def _judge_direction(direction: str, at: str, peer: str, call: Call, manifests: Manifests) -> Verdict:
    isolating: list[tuple[bool | None, Policy]] = []
    for policy in manifests.policies:
        if direction in _types(policy.spec) and policy.namespace == _namespace_of(at):
            selected = selects(mapping(policy.spec.get("podSelector")), manifests.labels_of(at))
            if selected is not False:
                isolating.append((selected, policy))
    if not isolating:
        return Verdict(True)
    answers = [all_of([selected, _allows(direction, policy, peer, call, manifests)]) for selected, policy in isolating]
    allowed = any_of(answers)
    certain = [policy for selected, policy in isolating if selected is True]
    if allowed is False:
        # It is refused only if the pod is isolated for sure.
        return Verdict(False, certain[0], direction.lower()) if certain else Verdict(None)
    return Verdict(allowed)


def _types(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the directions a policy isolates: as said, else Ingress, and Egress if it has such rules."""
    said = sequence(spec.get("policyTypes"))
    if said:
        return tuple(str(one) for one in said)
    return ("Ingress", "Egress") if "egress" in spec else ("Ingress",)


def _allows(direction: str, policy: Policy, peer: str, call: Call, manifests: Manifests) -> bool | None:
    answers = []
    for rule in sequence(policy.spec.get(direction.lower())):
        peers = sequence(mapping(rule).get("from" if direction == "Ingress" else "to"))
        ports = sequence(mapping(rule).get("ports"))
        matches = any_of([_is_peer(mapping(one), policy, peer, manifests) for one in peers]) if peers else True
        answers.append(all_of([matches, _has_port(ports, call, manifests)]))
    return any_of(answers)


def _is_peer(rule: Mapping[str, Any], policy: Policy, peer: str, manifests: Manifests) -> bool | None:
    block = mapping(rule.get("ipBlock"))
    if block:
        return _in_block(block, peer)
    if is_external(peer) or peer.startswith(_ADDRESS_PREFIX):
        return False
    namespace = _namespace_of(peer)
    answers: list[bool | None] = []
    if "namespaceSelector" in rule:
        labels = manifests.namespace_labels(namespace)
        selector = mapping(rule.get("namespaceSelector"))
        answers.append(selects(selector, labels if labels is not None else _given_labels(selector, namespace)))
    else:
        answers.append(namespace == policy.namespace)
    if "podSelector" in rule:
        answers.append(selects(mapping(rule.get("podSelector")), manifests.labels_of(peer)))
    return all_of(answers)


def _given_labels(selector: Mapping[str, Any], namespace: str) -> Mapping[str, str] | None:
    """Return the one label that every namespace has, if the selector asks for no other; else ``None``: unknown."""
    asked = {str(key) for key in mapping(selector.get("matchLabels"))}
    asked |= {str(mapping(one).get("key")) for one in sequence(selector.get("matchExpressions"))}
    return {NAMESPACE_NAME: namespace} if asked <= {NAMESPACE_NAME} else None


def _in_block(block: Mapping[str, Any], peer: str) -> bool | None:
    """Say whether a peer lies in an ``ipBlock``: known of bare addresses, and where the block is all there is."""
    try:
        network = ipaddress.ip_network(str(block.get("cidr")), strict=False)
        holes = [ipaddress.ip_network(str(one), strict=False) for one in sequence(block.get("except"))]
    except ValueError:
        return None
    if peer.startswith(_ADDRESS_PREFIX):
        try:
            address = ipaddress.ip_address(peer[len(_ADDRESS_PREFIX) :])
        except ValueError:
            return None
        return address in network and not any(address in hole for hole in holes)
    if network.prefixlen == 0 and is_external(peer):
        return True if all(hole.is_private for hole in holes) else None
    # A pod's address is not known here; Kubernetes matches blocks against it all the same.
    return None


def _has_port(ports: Sequence[Any], call: Call, manifests: Manifests) -> bool | None:
    if not ports:
        return True
    number = target_port(manifests, call.dst, call.port)
    answers: list[bool | None] = []
    for one in ports:
        rule = mapping(one)
        protocol = _PROTOCOLS.get(str(rule.get("protocol", "TCP")), -1)
        same_protocol: bool | None = None if call.protocol < 0 else protocol == call.protocol
        wanted = rule.get("port")
        same_port: bool | None
        if wanted is None:
            same_port = True
        elif not isinstance(wanted, int) or number < 0:
            same_port = None  # a port by name, or a call of which no port is known
        else:
            last = rule.get("endPort")
            same_port = wanted <= number <= (last if isinstance(last, int) else wanted)
        answers.append(all_of([same_protocol, same_port]))
    return any_of(answers)


def _namespace_of(service: str) -> str:
    """Return the namespace of ``namespace/name`` or ``cluster:namespace/name``."""
    return service.rpartition(":")[2].partition("/")[0]
