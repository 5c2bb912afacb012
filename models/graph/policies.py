"""A tenant's declared rules, ready to be asked about edges: which rule an edge violates. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from models.graph.patterns import matches
from schemas.documents import MAX_DOCUMENTS
from schemas.flow import PROTOCOL_NUMBERS
from schemas.ids import stable_hash
from schemas.policies import Policies, PolicyRule, read_policies
from schemas.tenant_log import EdgeIdentity

_MOST_ANSWERS = 500_000
"""Answers remembered; beyond it all are found anew."""


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """One document, read. ``digest`` stands for ``data``."""

    digest: str
    data: bytes
    policies: Policies


def read_policy_document(data: bytes) -> PolicyDocument:
    """Read a document.

    Raises:
        ValueError: see `schemas.policies.read_policies`.
    """
    return PolicyDocument(stable_hash("policies", data.hex()), data, read_policies(data))


class PolicySet:
    """All policy documents of one tenant. It does not change: another set of documents is another object.

    Attributes:
        documents: by name, in the order in which they are asked.
    """

    def __init__(self, documents: Mapping[str, PolicyDocument] | None = None) -> None:
        self.documents = dict(sorted((documents or {}).items()))
        self._answers: dict[tuple[str, str, int, int], str | None] = {}

    def with_document(self, name: str, document: PolicyDocument | None) -> Self:
        """Return the set once a document is set, or taken away; one too many changes nothing."""
        others = {other: kept for other, kept in self.documents.items() if other != name}
        if document is None:
            return type(self)(others)
        return type(self)({**others, name: document}) if len(others) < MAX_DOCUMENTS else self

    @property
    def digests(self) -> dict[str, str]:
        """Return each document's digest."""
        return {name: document.digest for name, document in self.documents.items()}

    def violated_by(self, edge: EdgeIdentity) -> str | None:
        """Return ``DOCUMENT/RULE`` of the rule that denies an edge; None if it may be."""
        key = edge[1:]
        if key not in self._answers:
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            self._answers[key] = self._find(*key)
        return self._answers[key]

    def _find(self, src: str, dst: str, port: int, protocol: int) -> str | None:
        for name, document in self.documents.items():
            for rule in document.policies.rules:
                if _fits(rule, src, dst, port, protocol):
                    return f"{name}/{rule.name}" if rule.action == "deny" else None
        return None


def _fits(rule: PolicyRule, src: str, dst: str, port: int, protocol: int) -> bool:
    return (
        (not rule.ports or port in rule.ports)
        and (rule.protocol is None or PROTOCOL_NUMBERS[rule.protocol] == protocol)
        and any(matches(pattern, src) for pattern in rule.src)
        and any(matches(pattern, dst) for pattern in rule.dst)
    )
