"""What it means for a lane that a tenant's names have changed: renaming is not drift. Pure.

Services whose new name can be told from what they are called get it in place, with all that is known of them. Addresses
that share a node are gone, so a node can only be renamed as a whole: where a rule cuts through it, it stays as it is,
learns anew what is usual and is not missed; what the rule names is compared by the name it had (settling.py).
"""

from dataclasses import dataclass, field

import numpy as np

from models.graph.addresses import OUTSIDE_NETWORK, RangeTable, is_mixed, name_by_range, ranges_of_name
from models.graph.lane import LaneState
from models.graph.merging import Moved, edges_of, learn_anew, rename_services
from models.graph.naming import NAMESPACE_PREFIX, Naming
from models.graph.output import Output
from models.graph.settling import Settling
from schemas.ids import NETWORK_PREFIX
from schemas.inventory import Network


@dataclass(slots=True)
class _Change:
    """What differs between two namings.

    Attributes:
        ranges: address ranges with a rule in one of them alone, or with another one. added: those new in the later.
        names: that rules which differ gave, or give now. namespaces: of label rules that differ; None is any.
        given_by: for each name of the earlier rules, what the later naming calls all that one of its rules named so;
            None where that has several names now.
    """

    ranges: RangeTable[bool]
    added: RangeTable[bool]
    names: set[str] = field(default_factory=set)
    namespaces: set[str | None] = field(default_factory=set)
    given_by: dict[str, set[str | None]] = field(default_factory=dict)


def rename(lane: LaneState, tenant: str, before: Naming, after: Naming) -> Output:
    """Apply a change of a tenant's names to what a lane knows of it."""
    output = Output()
    number = lane.registry.tenant_number.get(tenant)
    if number is None or number not in lane.tenants:
        return output
    registry = lane.registry
    edges = edges_of(lane, number)
    services = np.unique(np.concatenate([registry.edge.array[end][edges] for end in ("src", "dst")])).tolist()
    change = _change_between(before, after)
    names: dict[int, str] = {}
    unsettled: set[int] = set()
    for service in services:
        name, is_given = registry.services[service][1], bool(registry.service.array["given"][service])
        new = after.name(name) if is_given else _new_name(name, after, change)
        if new is not None and new != name:
            names[service] = new
        elif _is_touched(name, is_given, before, after, change):
            unsettled.add(service)
    renamed = {registry.services[service][1]: new for service, new in names.items()}
    moved = Moved({}, set(), {})
    if names:
        output.events += lane.tenants[number].book.rename(lane.scope(tenant), lane.judged_index, renamed)
        lane.tenants[number].calendar.rename(renamed)
        moved = rename_services(lane, number, names)
        unsettled |= moved.merged
    touching = edges_of(lane, number, np.array(sorted(unsettled), dtype=np.int64))
    learn_anew(lane, touching)
    for end in ("src", "dst"):
        unsettled |= set(registry.edge.array[end][touching].tolist())
    _settle(lane, number, before, renamed, moved, unsettled)
    return output


def _settle(
    lane: LaneState, tenant: int, before: Naming, renamed: dict[str, str], moved: Moved, unsettled: set[int]
) -> None:
    """Begin, or prolong, the time in which names are compared by what they were before."""
    state = lane.tenants[tenant]
    until = state.closed_windows + max(1, lane.detection(lane.registry.tenants[tenant]).learning_windows)
    if state.settling is None:
        state.settling = Settling(until, before)
    state.settling.until = max(state.settling.until, until)
    state.settling.follow(lane.registry, renamed, moved.services, moved.edges)
    state.settling.services |= unsettled


def _change_between(before: Naming, after: Naming) -> _Change:
    old, new = before.rules, after.rules
    changed = {
        network: old.addresses.get(network) is None
        for table, other in ((old.addresses, new.addresses), (new.addresses, old.addresses))
        for network, target in table.items()
        if not target.says_the_same(other.get(network))
    }
    change = _Change(RangeTable(changed), RangeTable({n: True for n, is_added in changed.items() if is_added}))
    for network in changed:
        for rules in (old, new):
            found = rules.addresses.around(network)
            change.names.update(found[1].names_in(found[0]) if found is not None else ())
    for network, target in old.addresses.items():
        for name in target.names_in(network):
            change.given_by.setdefault(name, set()).add(_name_of_range(network, after, change))
    old_labels, new_labels = ({rule.subject: rule for rule in rules.labels} for rules in (old, new))
    for subject in old_labels.keys() ^ new_labels.keys():
        change.namespaces.add((old_labels.get(subject) or new_labels[subject]).namespace)
    _compare(
        {subject: rule.name for subject, rule in old_labels.items()},
        {subject: rule.name for subject, rule in new_labels.items()},
        change,
    )
    _compare(
        {match: rule.name for match, rule in old.names.items()},
        {match: rule.name for match, rule in new.names.items()},
        change,
    )
    return change


def _compare(earlier: dict[str, str], later: dict[str, str], change: _Change) -> None:
    """Note what rules that are looked up by their subject named, and name now."""
    for subject, name in earlier.items():
        change.given_by.setdefault(name, set()).add(later.get(subject))
    for subject in earlier.keys() | later.keys():
        names = {earlier.get(subject), later.get(subject)}
        if len(names) > 1:
            change.names.update(name for name in names if name is not None)


def _name_of_range(network: Network, after: Naming, change: _Change) -> str | None:
    """Return the one name of all that is left of a range once inner rules have taken theirs, or None if it has several.

    Inner rules that were there before do not count: what they name is not called as the range is.
    """
    if change.added.has_inside(network):
        return None
    address = network.network_address
    found = after.rules.addresses.around(network)
    if found is not None and found[1].name is not None:
        return None if found[1].inside is None and is_mixed(network) else found[1].name_of(address)
    name = name_by_range(address, after.prefix_v4, after.prefix_v6) if found is None else found[1].name_of(address)
    return name if any(_holds(whole, network) for whole in ranges_of_name(name)) else None


def _holds(outer: Network, inner: Network) -> bool:
    bits = outer.max_prefixlen - outer.prefixlen
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and int(outer.network_address) >> bits == int(inner.network_address) >> bits
    )


def _new_name(name: str, after: Naming, change: _Change) -> str | None:
    """Return what a service is called now that only our naming called so; None if its name does not tell."""
    if name in change.given_by:
        new, *others = change.given_by[name]
        return new if not others else None
    ranges = ranges_of_name(name)
    return _name_of_range(ranges[0], after, change) if len(ranges) == 1 else None


def _is_touched(name: str, is_given: bool, before: Naming, after: Naming, change: _Change) -> bool:
    """Say whether a service that keeps its name may carry other traffic than before."""
    if name in change.names:
        return True
    ranges = ranges_of_name(name)
    if not ranges:
        return not is_given and bool(change.namespaces & {None, _namespace_of(name)})
    is_prefix = name.startswith((OUTSIDE_NETWORK, NETWORK_PREFIX))
    if any(
        change.ranges.get(network) is not None
        or change.ranges.has_inside(network)
        or (is_prefix and change.ranges.around(network) is not None)
        for network in ranges
    ):
        return True
    lengths = {(naming.prefix_v4, naming.prefix_v6) for naming in (before, after)}
    return name.startswith(OUTSIDE_NETWORK) and len(lengths) > 1


def _namespace_of(name: str) -> str:
    """Return the namespace of a node that was named by labels."""
    if name.startswith(NAMESPACE_PREFIX):
        return name.rpartition(":")[2]
    return name.partition("/")[0].rpartition(":")[2]
