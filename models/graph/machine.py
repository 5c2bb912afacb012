"""The state machine of one `tenant-log` partition: a pure function of the log up to an offset, of nothing else."""

from collections.abc import Callable
from functools import partial

import msgspec

from models.drift.alerting import AlertLedger
from models.graph import corroboration
from models.graph.closing import advance, close_all
from models.graph.declaration import declared_by, first_fields, without_later_fields
from models.graph.folding import fold
from models.graph.guarding import note_losses
from models.graph.lane import LIVE, LaneState
from models.graph.logic import IDLE_EXPIRES, LOGIC_VERSION, PRODUCERS_OWN, Logic
from models.graph.output import Output
from models.graph.policies import PolicySet, read_policy_document
from models.graph.renaming import rename
from models.graph.rules import Document, Rules, read_document
from models.graph.taken import TakenOrigins
from schemas.detection import DetectionConfig
from schemas.errors import LogicVersionError, LossDetected
from schemas.inventory import INVENTORY
from schemas.policies import POLICIES
from schemas.tenant_log import Control, LaneConfig, LogRecord, Progress, unpack_positions

TENANT_SETTINGS = "tenant-settings"
"""Kind of control whose value overrides ``DetectionConfig`` fields of one tenant."""
LIVE_LANES = ""
MAX_SETTING = 1_000_000_000
"""No threshold means more than this, and arithmetic with it stays within bounds."""
_FLOATS = frozenset(
    name for name, default in msgspec.structs.asdict(DetectionConfig()).items() if isinstance(default, float)
)


class Machine:
    """State of one partition.

    Attributes:
        offset: offset of the last applied log record; -1 before the first.
        applied: highest applied coordinate per source partition.
        settings: overridden detection fields per tenant.
        inventories: rules by which services are named, per tenant; not before logic version `PRODUCERS_OWN`.
        policies: rules of who may call whom, per tenant; likewise.
        taken: replayed dead letters that were folded, here or in another partition of the log.
        ledgers: alerts of each tenant, by lane; those of all live lanes together, under ``LIVE_LANES``.
        stored: digests of the inventory's documents that the last checkpoint holds; nothing judges by it.
        logic: the logic version in force.

    Args:
        can_run: the latest logic version it may run.
    """

    def __init__(self, can_run: int = LOGIC_VERSION) -> None:
        self.can_run = can_run
        self.logic = Logic()
        self.offset = -1
        self.applied: dict[tuple[str, int], int] = {}
        self.lanes: dict[str, LaneState] = {}
        self.settings: dict[str, dict[str, int | float]] = {}
        self.inventories: dict[str, Rules] = {}
        self.policies: dict[str, PolicySet] = {}
        self.taken = TakenOrigins()
        self.ledgers: dict[str, dict[str, AlertLedger]] = {}
        self.stored: frozenset[str] = frozenset()

    def apply(self, offset: int, record: LogRecord) -> Output:
        """Apply one record; a record at or below ``offset`` that was applied already changes nothing.

        Raises:
            LossDetected: what the record builds on never arrived.
            LogicVersionError: from this record on a logic version is in force that this worker cannot run.
        """
        if offset <= self.offset:
            return Output()
        for progress in record.progress:
            self._check_chain(progress, record)
        logic = self.logic.after(record.worker, record.as_of_ms, record.logic)
        if logic.in_force > self.can_run:
            raise LogicVersionError(
                f"from offset {offset} on logic version {logic.in_force} is in force, this worker runs {self.can_run} "
                "at most: update it; its partitions go to workers that can"
            )
        output = self._follow(logic)
        for control in record.controls:
            output.extend(self._apply_control(control, record))
        if record.lane is not None:
            output.extend(self._apply_to_lane(record, record.lane))
        if record.origin is not None and record.elsewhere is not None:
            self.taken.add(record.origin, unpack_positions(record.elsewhere))
        for progress in record.progress:
            key = (progress.source, progress.partition)
            self.applied[key] = max(self.applied.get(key, progress.upto), progress.upto)
        self.offset = offset
        return output

    def begin_incarnation(self) -> Output:
        """Keep what was learned, drop what belonged to a log that is gone; open windows close as incomplete.

        What was taken of replays stays: dead letters name the incarnation they come from and may outlive it.
        """
        output = Output()
        self.offset = -1
        self.applied = {}
        self.logic = Logic(self.logic.in_force)
        for name in sorted(self.lanes):
            self.lanes[name].beside = corroboration.beside(self.lanes, self.lanes[name])
            output.extend(close_all(self.lanes[name], "incarnation"))
        return output

    def _check_chain(self, progress: Progress, record: LogRecord) -> None:
        applied = self.applied.get((progress.source, progress.partition))
        if applied is None or progress.after <= applied:
            return
        if not record.loss:
            raise LossDetected(
                f"records of {progress.source}[{progress.partition}] between positions {applied} and {progress.after} "
                "are not in tenant-log; to go on without them, create tenant-log anew and change topics.incarnation: "
                "what was learned stays"
            )
        for lane in self.lanes.values():
            lane.lost = True
            lane.quiet_floor = max(lane.quiet_floor, *lane.windows, (lane.closed_index or 0) - 1)
            for window in lane.windows.values():
                window.incomplete.add("loss")

    def _follow(self, logic: Logic) -> Output:
        """Take over who was heard of; a version newly in force may name services otherwise."""
        if logic.in_force == self.logic.in_force:
            self.logic = logic
            return Output()

        def change() -> None:
            self.logic = logic
            for lane in self.lanes.values():
                if lane.logic < PRODUCERS_OWN <= logic.in_force:
                    lane.registry.take_names_as_given()
                lane.logic = logic.in_force

        return self._change_names(change)

    def _apply_control(self, control: Control, record: LogRecord) -> Output:
        source = record.progress[0]
        if control.position > self.applied.get((source.source, source.partition), -1):
            if control.kind == TENANT_SETTINGS:
                return self._apply_settings(control)
            if control.kind == INVENTORY and self.logic.in_force >= PRODUCERS_OWN:
                return self._apply_inventory(control)
            if control.kind == POLICIES and self.logic.in_force >= PRODUCERS_OWN:
                self._apply_policies(control)
        return Output()

    def _apply_policies(self, control: Control) -> None:
        try:
            document = read_policy_document(control.value) if control.value else None
        except ValueError:
            return  # ingest has refused it already
        policies = self.policies.pop(control.tenant, PolicySet()).with_document(control.id, document)
        if policies.documents:
            self.policies[control.tenant] = policies

    def _apply_settings(self, control: Control) -> Output:
        values: dict[str, int | float] = {}
        if control.value:
            try:
                values = msgspec.json.decode(control.value, type=dict[str, int | float])
            except msgspec.MsgspecError:
                return Output()  # ingest has refused it already; an old record of another version changes nothing
        known = DetectionConfig.__struct_fields__ if self.logic.in_force >= PRODUCERS_OWN else first_fields()

        def change() -> None:
            self.settings[control.tenant] = {
                name: min(max(value, 0), MAX_SETTING) for name, value in values.items() if name in known
            }
            for lane in self.lanes.values():
                self.take_settings(lane)

        return self._change_names(change)

    def _apply_inventory(self, control: Control) -> Output:
        document: Document | None = None
        if control.value:
            try:
                document = read_document(control.value)
            except ValueError:
                return Output()  # ingest has refused it already
        rules = self.inventories.get(control.tenant, Rules()).with_document(control.id, document)

        def change() -> None:
            self.inventories[control.tenant] = rules
            if not rules.documents:
                del self.inventories[control.tenant]

        return self._change_names(change)

    def _change_names(self, change: Callable[[], None]) -> Output:
        """Make a change that services may be named otherwise after, and have lanes follow it."""
        before = {
            lane: {tenant: lane.naming(tenant) for tenant in sorted(lane.registry.tenants)}
            for lane in map(self.lanes.__getitem__, sorted(self.lanes))
        }
        change()
        output = Output()
        for lane, namings in before.items():
            lane.beside = corroboration.beside(self.lanes, lane)
            lane.forget_namings()
            for tenant, naming in namings.items():
                if not naming.is_same_as(lane.naming(tenant)):
                    output.extend(rename(lane, tenant, naming, lane.naming(tenant)))
        return output

    def take_settings(self, lane: LaneState) -> None:
        """Give a lane the thresholds of tenants that have their own, all inventories and policies."""
        base = lane.config.detection
        lane.rules_of, lane.policies_of = self.inventories, self.policies
        lane.detection_of = {
            tenant: msgspec.structs.replace(
                base, **{name: value if name in _FLOATS else int(value) for name, value in values.items()}
            )
            for tenant, values in sorted(self.settings.items())
            if values
        }

    def share_ledgers(self, lane: LaneState) -> None:
        """Give a lane the alerts of its tenants: live lanes those they have in common."""
        name = LIVE_LANES if lane.config.mode == LIVE else lane.config.name
        lane.ledgers = self.ledgers.setdefault(name, {})

    def _declare(self, lane: LaneState, config: LaneConfig) -> None:
        lane.declare(config)
        self.take_settings(lane)
        self.share_ledgers(lane)

    def _apply_to_lane(self, record: LogRecord, config: LaneConfig) -> Output:
        output = Output()
        if self.logic.in_force < PRODUCERS_OWN:
            config = without_later_fields(config)
        lane = self.lanes.get(config.name)
        if lane is None or config.generation > lane.config.generation:
            if lane is not None:  # what waited goes the way of its open windows
                output.counts["stale_generation"] += len(lane.halves)
            lane = self.lanes[config.name] = LaneState(config)
            lane.logic = self.logic.in_force
            self.take_settings(lane)
            if config.mode != LIVE:
                self.ledgers.pop(config.name, None)
            self.share_ledgers(lane)
        elif config.generation < lane.config.generation:
            output.counts["stale_generation"] += record.rows.count if record.rows is not None else 0
            return output
        elif config != lane.config:
            declared = declared_by(lane.config, config)
            if declared != lane.config:
                output.extend(self._change_names(partial(self._declare, lane, declared)))
        lane.beside = corroboration.beside(self.lanes, lane)
        lane.clock.idle_expires = self.logic.in_force >= IDLE_EXPIRES
        if record.rows is not None or record.losses:
            source = record.progress[0]
            applied = self.applied.get((source.source, source.partition), -1)
            if record.rows is not None:
                output.extend(fold(lane, record, applied, self.taken))
            note_losses(lane, record, applied)
        fresh = tuple(
            progress
            for progress in record.progress
            if progress.upto >= self.applied.get((progress.source, progress.partition), -1)
        )
        lane.clock.state(msgspec.structs.replace(record, progress=fresh))
        output.extend(advance(lane))
        return output
