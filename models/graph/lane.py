"""What is known of one lane in one partition. Rows change it (folding.py), and the watermark (closing.py). Pure."""

from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from models.drift import structural
from models.drift.findings import FindingBook, Scope
from models.graph.admission import TenantEdges
from models.graph.clock import LaneClock
from models.graph.logic import LOGIC_VERSION, PRODUCERS_OWN
from models.graph.naming import Naming
from models.graph.registry import Registry
from models.graph.window import WindowTable
from schemas.detection import DetectionConfig
from schemas.drift import EdgeRef
from schemas.tenant_log import EdgeIdentity, LaneConfig

IntColumn = npt.NDArray[np.int64]
DAY_MS = 86_400_000


@dataclass(slots=True)
class TenantState:
    """One tenant in one lane.

    Attributes:
        closed_windows: windows with traffic that have closed; the tenant learns until it has enough.
        detection: the tenant's own thresholds, from its controls; None takes the lane's.
    """

    closed_windows: int = 0
    edges: TenantEdges = field(default_factory=TenantEdges)
    book: FindingBook = field(default_factory=FindingBook)


class LaneState:
    """Registry, open windows, tenants and clock of a lane.

    Attributes:
        closed_index: windows with a smaller index are closed; None before the first watermark.
        judged_index: deadlines up to the end of this window have fired.
        quiet_floor: silence before the end of this window counts for nothing: records may be missing.
        logic: the logic version in force, set with every record.
    """

    def __init__(self, config: LaneConfig) -> None:
        self.config = config
        self.clock = LaneClock(config)
        self.clock.declare(config)
        self.registry = Registry()
        self.windows: dict[int, WindowTable] = {}
        self.tenants: dict[int, TenantState] = {}
        self.closed_index: int | None = None
        self.judged_index = -1
        self.quiet_floor = -1
        self.detection_of: dict[str, DetectionConfig] = {}
        self.lost = False
        self.logic = LOGIC_VERSION
        self._naming = Naming()

    def follow(self, logic: int) -> None:
        """Judge by a logic version from here on."""
        if logic != self.logic:
            self.registry.forget_spellings()
        self.logic = logic

    def named(self, edge: EdgeIdentity) -> EdgeIdentity:
        """Return the edge that a record's edge counts to."""
        return self._naming.edge(edge) if self.logic >= PRODUCERS_OWN else edge

    def declare(self, config: LaneConfig) -> None:
        """Take over a newer declaration. The window length stays: closed windows are cut by it."""
        config = msgspec.structs.replace(config, window_ms=self.config.window_ms)
        self.config = config
        self.clock.declare(config)

    def tenant_state(self, number: int) -> TenantState:
        """Return a tenant's state in this lane."""
        state = self.tenants.get(number)
        if state is None:
            state = self.tenants[number] = TenantState()
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
        return Scope(tenant, self.config.name, self.config.generation, self.config.window_ms, self.detection(tenant))

    def has_learned(self, number: int) -> bool:
        """Say whether a tenant is past its learning windows."""
        state = self.tenants.get(number)
        return (
            state is not None and state.closed_windows >= self.detection(self.registry.tenants[number]).learning_windows
        )

    def fires_early(self, tenant: int) -> bool:
        """Say whether what is new of a tenant may be told before its window closes."""
        state = self.tenants.get(tenant)
        cap = self.detection(self.registry.tenants[tenant]).max_edges_per_tenant
        return state is not None and self.has_learned(tenant) and state.edges.count * 2 <= cap

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
        return structural.EdgeFacts(
            ref=EdgeRef(*identity[1:]),
            src_known=bool(service["known"][src]),
            dst_known=bool(service["known"][dst]),
            pair_known=(src << 32 | dst) in self.registry.known_pairs,
            calls=calls,
            first_ms=first_ms,
            history=self.tenants[int(edge["tenant"][number])].closed_windows,
        )
