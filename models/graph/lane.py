"""What is known of one lane in one partition. Rows change it (folding.py), and the watermark (closing.py). Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np
import numpy.typing as npt

from models.drift import structural
from models.drift.alerting import AlertLedger
from models.drift.calendar import Calendar
from models.drift.detection import Detection
from models.drift.findings import FindingBook, Scope, Sight
from models.drift.rarity import Rarity
from models.drift.verdict import Judge
from models.graph.admission import TenantEdges
from models.graph.clock import LaneClock
from models.graph.guard import SourceGuard
from models.graph.halves import Halves
from models.graph.logic import LOGIC_VERSION, PRODUCERS_OWN
from models.graph.naming import LITERAL, Naming
from models.graph.policies import PolicySet
from models.graph.registry import Registry
from models.graph.rules import Rules
from models.graph.settling import Settling
from models.graph.sight import first_sight_ms
from models.graph.window import WindowTable
from schemas.detection import DetectionConfig
from schemas.drift import EdgeRef
from schemas.tenant_log import EdgeIdentity, LaneConfig

IntColumn = npt.NDArray[np.int64]
DAY_MS = 86_400_000
LIVE = "live"
LAPSE_MS = 30 * DAY_MS
"""A lane so far behind another is gone: what it had is news again, as with edges that nobody saw for as long."""


@dataclass(slots=True)
class TenantState:
    """One tenant in one lane.

    Attributes:
        closed_windows: windows with traffic that have closed; the tenant learns until it has enough.
        is_newcomer: another live lane had learned the tenant already when this one first heard of it.
        settling: present while the names of the tenant's endpoints have just changed.
        calendar: when its edges and services departed before.
        rarity: what its findings' risks rest on; from logic version 3 on.
    """

    closed_windows: int = 0
    edges: TenantEdges = field(default_factory=TenantEdges)
    book: FindingBook = field(default_factory=FindingBook)
    is_newcomer: bool = False
    settling: Settling | None = None
    calendar: Calendar = field(default_factory=Calendar)
    rarity: Rarity = field(default_factory=Rarity)


class LaneState:
    """Registry, open windows, tenants and clock of a lane.

    Attributes:
        halves: halves of calls that wait for the other one, in windows that are open.
        closed_index: windows with a smaller index are closed; None before the first watermark.
        judged_index: deadlines up to the end of this window have fired.
        quiet_floor: silence before the end of this window counts for nothing: records may be missing.
        logic: the logic version in force.
        beside: the other live lanes (models/graph/corroboration.py), set with every record.
        guard: what is known of its sources: whether they lose data.
        rules_of: each tenant's inventory. policies_of: each tenant's policies.
        ledgers: each tenant's alerts; all live lanes have the same ones.
    """

    def __init__(self, config: LaneConfig) -> None:
        self.config = config
        self.clock = LaneClock(config)
        self.clock.declare(config)
        self.registry = Registry()
        self.windows: dict[int, WindowTable] = {}
        self.halves = Halves()
        self.tenants: dict[int, TenantState] = {}
        self.closed_index: int | None = None
        self.judged_index = -1
        self.quiet_floor = -1
        self.detection_of: dict[str, DetectionConfig] = {}
        self.lost = False
        self.guard = SourceGuard()
        self.logic = LOGIC_VERSION
        self.beside: tuple[LaneState, ...] = ()
        self.rules_of: Mapping[str, Rules] = {}
        self.ledgers: dict[str, AlertLedger] = {}
        self.policies_of: Mapping[str, PolicySet] = {}
        self._namings: dict[str, Naming] = {}

    def naming(self, tenant: str) -> Naming:
        """Return how a tenant's endpoints are named here."""
        naming = self._namings.get(tenant)
        if naming is None:
            naming = self._namings[tenant] = self._make_naming(tenant)
        return naming

    def _make_naming(self, tenant: str) -> Naming:
        if self.logic < PRODUCERS_OWN:
            return LITERAL
        config = self.detection(tenant)
        return Naming(self.rules_of.get(tenant), config.outside_prefix_v4, config.outside_prefix_v6)

    def forget_namings(self) -> None:
        """Name everything anew from here on: rules, settings or the logic version have changed."""
        self._namings.clear()
        self.registry.forget_spellings()

    def named(self, edge: EdgeIdentity) -> EdgeIdentity:
        """Return the edge that a record's edge counts to."""
        return self.naming(edge[0]).edge(edge)

    def note_names(self, number: int, given: EdgeIdentity) -> None:
        """Note what a record calls the ends of an edge that counts to ``number``."""
        if self.logic >= PRODUCERS_OWN:
            self.registry.note_given(number, given)
            settling = self.tenant_state(int(self.registry.edge.array["tenant"][number])).settling
            if settling is not None:
                settling.note(self.registry, number, given)

    def declare(self, config: LaneConfig) -> None:
        """Take over a newer declaration. The window length stays: closed windows are cut by it."""
        config = msgspec.structs.replace(config, window_ms=self.config.window_ms)
        self.config = config
        self.clock.declare(config)

    def tenant_state(self, number: int) -> TenantState:
        """Return a tenant's state in this lane."""
        state = self.tenants.get(number)
        if state is None:
            name = self.registry.tenants[number]
            is_newcomer = any(other.has_learned_of(name) for other in self.beside)
            state = self.tenants[number] = TenantState(is_newcomer=is_newcomer)
        return state

    def detection(self, tenant: str) -> DetectionConfig:
        """Return the thresholds in force for a tenant."""
        return self.detection_of.get(tenant, self.config.detection)

    def thresholds(self, name: str, tenants: IntColumn) -> IntColumn:
        """Return a whole-number threshold as it is in force for each of ``tenants`` (numbers)."""
        if not self.detection_of:
            return np.full(len(tenants), getattr(self.config.detection, name), dtype=np.int64)
        by_tenant = [getattr(self.detection(tenant), name) for tenant in self.registry.tenants] or [0]
        return np.array(by_tenant, dtype=np.int64)[tenants]

    def scope(self, tenant: str) -> Scope:
        """Return whose findings these are."""
        is_judged = self.logic >= PRODUCERS_OWN
        return Scope(
            tenant,
            self.config.name,
            self.config.generation,
            self.config.window_ms,
            self.detection(tenant),
            partial(self._sights, tenant) if is_judged else None,
            self._judge(tenant) if is_judged else None,
        )

    def _judge(self, tenant: str) -> Judge:
        rarity = self.tenant_state(self.registry.tenant_number[tenant]).rarity
        ledger = self.ledgers.setdefault(tenant, AlertLedger())
        return Judge(rarity, ledger, self.detection(tenant).alerts_per_day)

    def _sights(self, tenant: str, detection: Detection) -> tuple[Sight, ...]:
        """Return which other live lanes have seen what a detection is about."""
        found = (
            (other.config.name, first_sight_ms(other.registry, tenant, detection))
            for other in self.beside
            if not other.is_behind(self.closed_ms, LAPSE_MS)
        )
        return tuple(Sight(name, since_ms) for name, since_ms in found if since_ms is not None)

    @property
    def closed_ms(self) -> int | None:
        """Return the end of the windows that are closed; ``None`` before the first watermark."""
        return None if self.closed_index is None else self.closed_index * self.config.window_ms

    def is_behind(self, now_ms: int | None, limit_ms: int) -> bool:
        """Say whether the windows that are closed end more than ``limit_ms`` before ``now_ms``."""
        closed_ms = self.closed_ms
        return now_ms is not None and closed_ms is not None and now_ms - closed_ms > limit_ms

    def has_learned(self, number: int) -> bool:
        """Say whether a tenant is past its learning windows."""
        state = self.tenants.get(number)
        return (
            state is not None and state.closed_windows >= self.detection(self.registry.tenants[number]).learning_windows
        )

    def has_learned_of(self, tenant: str) -> bool:
        """Say the same by name; of a tenant that was never heard of it is false."""
        number = self.registry.tenant_number.get(tenant)
        return number is not None and self.has_learned(number)

    def fires_early(self, tenant: int) -> bool:
        """Say whether what is new of a tenant may be told before its window closes."""
        state = self.tenants.get(tenant)
        cap = self.detection(self.registry.tenants[tenant]).max_edges_per_tenant
        if state is None or state.settling is not None:
            return False
        return self.has_learned(tenant) and state.edges.count * 2 <= cap

    def window(self, index: int) -> WindowTable:
        """Return an open window, made on its first rows."""
        window = self.windows.get(index)
        if window is None:
            window = self.windows[index] = WindowTable(index)
            if self.lost:
                window.incomplete.add("loss")
        return window

    def facts(self, number: int, calls: int, first_ms: int) -> structural.EdgeFacts:
        """Return what a structural rule may know of an unknown edge."""
        identity = self.registry.identities[number]
        assert identity is not None
        edge, service = self.registry.edge.array, self.registry.service.array
        src, dst = int(edge["src"][number]), int(edge["dst"][number])
        facts = structural.EdgeFacts(
            ref=EdgeRef(*identity[1:]),
            src_known=bool(service["known"][src] or service["vouched"][src]),
            dst_known=bool(service["known"][dst] or service["vouched"][dst]),
            pair_known=(src << 32 | dst) in self.registry.known_pairs,
            calls=calls,
            first_ms=first_ms,
            history=self.tenants[int(edge["tenant"][number])].closed_windows,
        )
        settling = self.tenants[int(edge["tenant"][number])].settling
        return facts if settling is None else settling.facts(self.registry, number, facts)

    def begin_close(self, present: IntColumn) -> None:
        """Take the edges of a window about to be judged for what they were before names changed."""
        for number in sorted(self.tenants):
            settling = self.tenants[number].settling
            if settling is not None:
                settling.begin_close(self.registry, present)

    def unsettled(self) -> IntColumn:
        """Return the services whose traffic and peers may differ by names alone from what was usual."""
        parts = [
            state.settling.unsettled(self.registry) for state in self.tenants.values() if state.settling is not None
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
