"""A tenant's declared rules of who may call whom. Types, and what makes a document sound. Pure.

Each document is one record of `drift-controls`, key ``tenant:policies:NAME``, its value the JSON of `Policies`; an
empty value takes it away. Rules are tried in order, documents by name: the first that fits an edge decides; what none
fits may be.
"""

from typing import Annotated, Literal

import msgspec

from schemas.documents import read_document
from schemas.flow import MAX_NAME_BYTES, PROTOCOL_NUMBERS

POLICIES = "policies"
"""Kind of control that carries a document."""
MAX_RULES = 1_000

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_BYTES)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class PolicyRule(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename={"src": "from", "dst": "to"}
):
    """One rule; ``*`` in names stands for any text.

    Attributes:
        name: of the rule, as findings quote it.
        action: ``deny`` makes each such edge a violation, ``allow`` ends the search.
        src, dst: names of services (``from``, ``to``); endpoints outside begin with ``ext:``.
        ports: of the callee; none: any. protocol: ``tcp``, ``udp`` and so on; absent: any.
    """

    name: _Text
    action: Literal["allow", "deny"]
    src: tuple[_Text, ...] = ("*",)
    dst: tuple[_Text, ...] = ("*",)
    ports: tuple[_Port, ...] = ()
    protocol: str | None = None


class Policies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One document."""

    rules: tuple[PolicyRule, ...]


_decoder = msgspec.json.Decoder(Policies)


def read_policies(data: bytes) -> Policies:
    """Read a document and check all of it.

    Raises:
        ValueError: it is too large, not JSON of its form, or a rule makes no sense; the text says which and why.
    """
    policies = read_document(data, _decoder, "a policy")
    check_policies(policies)
    return policies


def encode_policies(policies: Policies) -> bytes:
    """Return the value of a control."""
    return msgspec.json.encode(policies)


def check_policies(policies: Policies) -> None:
    """Check what the types cannot say.

    Raises:
        ValueError: a rule makes no sense; the text says which and why.
    """
    if len(policies.rules) > MAX_RULES:
        raise ValueError(f"more than {MAX_RULES} rules in one document")
    seen: set[str] = set()
    for rule in policies.rules:
        if rule.name in seen:
            raise ValueError(f"two rules are called {rule.name!r}")
        seen.add(rule.name)
        if not rule.src or not rule.dst:
            raise ValueError(f"rule {rule.name!r}: `from` and `to` need a name or `*`")
        if rule.protocol is not None and rule.protocol not in PROTOCOL_NUMBERS:
            raise ValueError(f"rule {rule.name!r}: protocol {rule.protocol!r} is none of {sorted(PROTOCOL_NUMBERS)}")
