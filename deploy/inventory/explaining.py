"""Why an endpoint is called what it is called: the rule that says so, in words. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.graph.addresses import BROADCAST, MULTICAST, read_address
from models.graph.naming import Naming, Rule
from models.graph.rules import LabelTarget, NameTarget, Rules, read_document
from schemas.ids import ADDRESS_PREFIX, LABEL_PREFIX, is_external


@dataclass(frozen=True, slots=True)
class NamedBecause:
    """What an endpoint is called. ``document``: of the rule that says so, empty where no rule does."""

    given: str
    name: str
    document: str
    why: str

    @property
    def is_outside(self) -> bool:
        """Say whether it lies outside the tenant's estate."""
        return is_external(self.name)


def given_name(text: str) -> str:
    """Return how a record would give an endpoint that somebody asks about: a bare address, or a name."""
    address = read_address(text)
    return text if address is None else f"{ADDRESS_PREFIX}{address}"


def rules_of(documents: Mapping[str, bytes]) -> Rules:
    """Return the rules of documents by name.

    Raises:
        ValueError: one of them makes no sense.
    """
    return Rules({name: read_document(value) for name, value in documents.items()})


def line_of(found: NamedBecause) -> str:
    """Return it as a line."""
    place = f" of document {found.document}" if found.document else ""
    return f"{found.given} -> {found.name}: {found.why}{place}"


def explain_name(naming: Naming, text: str) -> NamedBecause:
    """Say what an address or a name is called, and why."""
    given = given_name(text)
    name, rule = naming.explain(given)
    document, why = _of_rule(rule) if rule is not None else ("", _of_range(given, name))
    return NamedBecause(given, name, document, why)


def _of_rule(rule: Rule) -> tuple[str, str]:
    if isinstance(rule, LabelTarget):
        return rule.document, f"label rule {rule.subject}"
    subject, target = rule
    if isinstance(target, NameTarget):
        return target.document, f"name rule {subject}"
    what = f"address rule {subject}"
    return target.document, what if target.name is not None else f"{what}, collapsed to /{target.collapse}"


def _of_range(given: str, name: str) -> str:
    if given.startswith(LABEL_PREFIX):
        return "no rule fits its labels: its name by a well-known label, else its namespace"
    if not given.startswith(ADDRESS_PREFIX):
        return "no rule: the name is kept"
    if name in (MULTICAST, BROADCAST):
        return "no rule: multicast and broadcast are one node each"
    if is_external(name):
        return "no rule: an address of the internet, named by its prefix"
    return "no rule: an address of the estate keeps its own"
