"""Taking the state machine apart into named chunks and putting it together again. Pure; bytes in, bytes out.

Edges and services are cut into pages, so that a checkpoint writes only the pages that changed. Open windows, findings
and the rest are small or change all the time and are written whole. ``restore(take(state))`` does what ``state`` does.

A state is written in the oldest version that can hold it, so that workers of the version before can take over as long
as they can: 1 is everything but replayed dead letters, which make it 2, and a logic version other than 1, or workers
that could run a later one, which make it 3. From logic version 3 on there is more to remember, which makes it 4.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from models.drift.calendar import Calendar, Occasion, Subject
from models.drift.findings import Finding, FindingBook, key_of
from models.drift.incidents import Incident
from models.drift.telemetry_state import Noted, TenantTelemetry
from models.graph.admission import TenantEdges
from models.graph.clock import LaneClock, MemberClock
from models.graph.guard import SourceGuard
from models.graph.lane import LaneState, TenantState
from models.graph.logic import LOGIC_VERSION, PRODUCERS_OWN, UNDECIDED, Logic
from models.graph.machine import Machine
from models.graph.naming_state import (
    Documents,
    SavedSettling,
    document_name,
    documents_of,
    head_of,
    restore_settling,
    settling_chunks,
)
from models.graph.policies import PolicySet, read_policy_document
from models.graph.registry import COLUMNS_SINCE_4, PAGE_ROWS, Columns
from models.graph.taken import TakenOrigins
from models.graph.verdict_state import (
    SavedRarity,
    ledger_chunks,
    ledger_counts,
    mark_ledgers_stored,
    restore_ledgers,
    restore_rarity,
    saved_rarity,
)
from models.graph.window import WindowTable
from schemas.errors import CheckpointError, WireFormatError
from schemas.graph import FIRST_MEASURES, MEASURES
from schemas.tenant_log import (
    PAIR,
    EdgeIdentity,
    LaneConfig,
    PackedColumn,
    Positions,
    as_known_before,
    pack_column,
    pack_positions,
    unpack_column,
    unpack_positions,
)

SNAPSHOT_VERSION = 4
"""Latest version that this worker reads, and the earliest that holds what `PRODUCERS_OWN` needs."""
LOGIC_HOLDING_VERSION = 3
TAKEN_VERSION = 2
FIRST_VERSION = 1
TAKEN_PAGE = 32_768
"""Positions in one chunk: 256 KiB where they lie as far apart as can be."""
CALENDAR_PAGE = 400
"""Subjects of a calendar in one chunk: each has two names of at most 256 bytes, and as much around them."""
HALVES_BYTES = 400_000
"""Of halves of calls in one chunk, at most about; packed they are less."""

IntColumn = npt.NDArray[np.int64]
PackedArray = tuple[str, list[int], bytes]

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_calendar_decoder = msgspec.msgpack.Decoder(list[tuple[Subject, list[Occasion]]])


class _Book(msgspec.Struct):
    open: list[Finding]
    closed: list[tuple[str, int]]
    incidents: list[Incident]
    episode_floor: int


class _Tenant(msgspec.Struct, omit_defaults=True):
    number: int
    closed_windows: int
    count: int
    overflow: int | None
    quarantine: list[tuple[int, int]]
    book: _Book
    is_newcomer: bool = False
    settling: SavedSettling | None = None
    calendar: int = 0
    rarity: SavedRarity | None = None


class _Member(msgspec.Struct):
    source: str
    partition: int
    clock: MemberClock


class _Lane(msgspec.Struct):
    config: LaneConfig
    members: list[_Member]
    as_of_ms: int
    watermark_ms: int | None
    paused: bool
    closed_index: int | None
    judged_index: int
    quiet_floor: int
    lost: bool
    tenants: list[str]
    services: int
    edges: int
    free: list[int]
    windows: list[int]
    tenant_states: list[int]


class _Guard(msgspec.Struct):
    """Tenants of whose source something is known, and (window, tenant) where something was noted. Since version 4."""

    tenants: list[int]
    noted: list[tuple[int, int]]


class _Halves(msgspec.Struct):
    edges: list[EdgeIdentity]
    columns: dict[str, PackedColumn]
    count: int


class _Meta(msgspec.Struct, omit_defaults=True):
    """``taken``: (source, partition, positions) of replayed dead letters. A field without default is always there.

    ``logic``: absent means version 1, and nobody who could run a later one.
    ``inventories``, ``policies``: the digest of each document of each tenant.
    ``halves``: chunks of halves of calls, by lane. ``ledgers``: tenants whose alerts are counted, by lane.
    """

    version: int
    offset: int
    applied: list[tuple[str, int, int]]
    settings: dict[str, dict[str, int | float]]
    lanes: list[_Lane]
    taken: list[tuple[str, int, int]] = []
    logic: Logic | None = None
    inventories: dict[str, dict[str, str]] = {}
    halves: dict[str, int] = {}
    ledgers: dict[str, int] = {}
    policies: dict[str, dict[str, str]] = {}


class _Window(msgspec.Struct):
    """A page of one side of an open window: measures of the edges that have any."""

    edges: PackedArray
    measures: PackedArray
    histogram: PackedArray


class _WindowHead(msgspec.Struct):
    incomplete: list[str]
    denied_by_source: list[tuple[int, int]]
    new_peers: list[tuple[int, list[int]]]
    pages: list[tuple[int, int]]


class _EdgePage(msgspec.Struct):
    """Edges by number; their names are those of the services they join. ``named`` is false where no edge is."""

    named: PackedArray
    columns: dict[str, PackedArray]


class _ServicePage(msgspec.Struct):
    services: list[tuple[int, str]]
    columns: dict[str, PackedArray]


def _pack(array: npt.NDArray[Any]) -> PackedArray:
    return array.dtype.str, list(array.shape), np.ascontiguousarray(array).tobytes()


def _unpack(packed: PackedArray) -> npt.NDArray[Any]:
    dtype, shape, data = packed
    return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)


def _pages(size: int) -> range:
    return range(-(-size // PAGE_ROWS))


def take(machine: Machine, everything: bool = False) -> Iterator[tuple[str, bytes | None]]:
    """Yield ``(name, bytes)`` of every live chunk; ``None`` instead of bytes where nothing changed since the last take.

    Call ``mark_clean`` once the chunks are stored.
    """
    lanes, halves = [], {}
    for name in sorted(machine.lanes):
        lane = machine.lanes[name]
        registry = lane.registry
        for page in _pages(len(registry)):
            changed = everything or page in registry.edge_pages
            yield f"{name}/edges/{page}", _edge_page(lane, page) if changed else None
        for page in _pages(len(registry.services)):
            changed = everything or page in registry.service_pages
            yield f"{name}/services/{page}", _service_page(lane, page) if changed else None
        for index in sorted(lane.windows):
            yield from _window_chunks(name, lane.windows[index])
        for number in sorted(lane.tenants):
            yield f"{name}/tenant/{number}", _encoder.encode(_tenant(number, lane.tenants[number]))
            calendar = lane.tenants[number].calendar
            for page, entries in enumerate(calendar.pages(CALENDAR_PAGE)):
                changed = everything or calendar.changed
                yield f"{name}/calendar/{number}/{page}", _encoder.encode(entries) if changed else None
            settling = lane.tenants[number].settling
            if settling is not None:
                yield from settling_chunks(name, number, settling)
        if lane.logic >= PRODUCERS_OWN:
            yield from _guard_chunks(name, lane.guard)
        for page, (edges, columns) in enumerate(lane.halves.pages(HALVES_BYTES)):
            packed = {column: pack_column(values) for column, values in columns.items()}
            yield f"{name}/halves/{page}", _encoder.encode(_Halves(edges, packed, len(columns[PAIR])))
            halves[name] = page + 1
        lanes.append(_lane(lane))
    taken = machine.taken
    for source in taken.sources():
        positions, changed = taken.positions(source), everything or source in taken.changed
        for page, name in enumerate(_taken_pages(source, len(positions))):
            some = positions[page * TAKEN_PAGE : (page + 1) * TAKEN_PAGE]
            yield name, _encoder.encode(pack_positions(some)) if changed else None
    yield from ledger_chunks(machine, everything)
    for digest, document in sorted(documents_of(machine).items()):
        yield document_name(digest), document.data if everything or digest not in machine.stored else None
    for digest, data in sorted(_policies_of(machine).items()):
        yield _policy_name(digest), data if everything or digest not in machine.stored else None
    meta = _Meta(
        _version_of(machine),
        machine.offset,
        [(source, partition, position) for (source, partition), position in sorted(machine.applied.items())],
        machine.settings,
        lanes,
        [(*source, len(taken.positions(source))) for source in taken.sources()],
        None if _is_first_logic(machine) else machine.logic,
        {tenant: rules.digests for tenant, rules in sorted(machine.inventories.items())},
        halves,
        ledger_counts(machine),
        {tenant: policies.digests for tenant, policies in sorted(machine.policies.items())},
    )
    yield "meta", _encoder.encode(meta)


def _policies_of(machine: Machine) -> dict[str, bytes]:
    return {d.digest: d.data for policies in machine.policies.values() for d in policies.documents.values()}


def _policy_name(digest: str) -> str:
    """Name the chunk of a policy document. A lane's chunk has a name before the first slash."""
    return f"/policies/{digest}"


def _restore_policies(digests: dict[str, str], chunks: dict[str, bytes]) -> PolicySet:
    return PolicySet({name: read_policy_document(chunks[_policy_name(digest)]) for name, digest in digests.items()})


def _version_of(machine: Machine) -> int:
    if machine.logic.in_force >= PRODUCERS_OWN:
        return SNAPSHOT_VERSION
    if not _is_first_logic(machine):
        return LOGIC_HOLDING_VERSION
    return TAKEN_VERSION if len(machine.taken) else FIRST_VERSION


def _is_first_logic(machine: Machine) -> bool:
    return machine.logic.in_force <= 1 and machine.logic.hearing is None


def mark_clean(machine: Machine) -> None:
    """Forget which pages changed: what ``take`` gave is stored."""
    for lane in machine.lanes.values():
        lane.registry.edge_pages.clear()
        lane.registry.service_pages.clear()
        for state in lane.tenants.values():
            state.calendar.changed = False
    mark_ledgers_stored(machine)
    machine.taken.mark_clean()
    machine.stored = frozenset(documents_of(machine)) | frozenset(_policies_of(machine))


def _taken_pages(source: tuple[str, int], size: int) -> list[str]:
    """Name the chunks of one source partition's positions. A lane's chunk has a word where these have a partition."""
    return [f"/taken/{source[0]}/{source[1]}/{page}" for page in range(-(-size // TAKEN_PAGE))]


def _edge_page(lane: LaneState, page: int) -> bytes:
    registry = lane.registry
    rows = slice(page * PAGE_ROWS, min((page + 1) * PAGE_ROWS, len(registry)))
    columns = _page_columns(lane, registry.edge, rows)
    named = np.array([identity is not None for identity in registry.identities[rows]], dtype=bool)
    return _encoder.encode(_EdgePage(_pack(named), columns))


def _service_page(lane: LaneState, page: int) -> bytes:
    registry = lane.registry
    rows = slice(page * PAGE_ROWS, min((page + 1) * PAGE_ROWS, len(registry.services)))
    columns = _page_columns(lane, registry.service, rows)
    return _encoder.encode(_ServicePage(registry.services[rows], columns))


def _page_columns(lane: LaneState, columns: Columns, rows: slice) -> dict[str, PackedArray]:
    """Pack some rows. Columns that are missing from an older state keep their fill values when it is restored."""
    left_out = COLUMNS_SINCE_4 if lane.logic < PRODUCERS_OWN else frozenset()
    return {name: _pack(column[rows]) for name, column in columns.array.items() if name not in left_out}


def _window_chunks(lane: str, window: WindowTable) -> Iterator[tuple[str, bytes]]:
    pages = []
    for side in window.sides:
        table = window.side(side, 0)
        used = np.flatnonzero(table.any(axis=0))
        keys, counts = window.histogram(side)
        for page in range(max(1, -(-len(used) // PAGE_ROWS))):
            edges = used[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
            low, high = window.key_range(used, page, PAGE_ROWS)
            inside = slice(*np.searchsorted(keys, [low, high]).tolist())
            histogram = np.stack([keys[inside], counts[inside]])
            chunk = _Window(_pack(edges), _pack(_measures(table, edges)), _pack(histogram))
            pages.append((side, page))
            yield f"{lane}/window/{window.index}/{side}/{page}", _encoder.encode(chunk)
    peers = [(source, sorted(window.new_peers[source])) for source in sorted(window.new_peers)]
    head = _WindowHead(sorted(window.incomplete), sorted(window.denied_by_source.items()), peers, pages)
    yield f"{lane}/window/{window.index}", _encoder.encode(head)


def _measures(table: IntColumn, edges: IntColumn) -> IntColumn:
    """Take measures of edges, ``(M, K)``: the first ones alone where the others are 0, as states before 4 have it."""
    later: IntColumn = table[FIRST_MEASURES:, edges]
    return table[: None if later.any() else FIRST_MEASURES, edges]


def _tenant(number: int, state: TenantState) -> _Tenant:
    book = _Book(
        [state.book.open[key] for key in sorted(state.book.open)],
        list(state.book.closed.items()),
        state.book.incidents,
        state.book.episode_floor,
    )
    edges = state.edges
    return _Tenant(
        number=number,
        closed_windows=state.closed_windows,
        count=edges.count,
        overflow=edges.overflow,
        quarantine=edges.quarantine,
        book=book,
        is_newcomer=state.is_newcomer,
        settling=None if state.settling is None else head_of(state.settling),
        calendar=-(-len(state.calendar.occasions) // CALENDAR_PAGE),
        rarity=saved_rarity(state.rarity),
    )


def _guard_chunks(name: str, guard: SourceGuard) -> Iterator[tuple[str, bytes]]:
    guard.settle()
    noted = [(index, number) for index in sorted(guard.open) for number in sorted(guard.open[index])]
    if guard.tenants or noted:
        yield f"{name}/guard", _encoder.encode(_Guard(sorted(guard.tenants), noted))
    for number in sorted(guard.tenants):
        yield f"{name}/guard/{number}", _encoder.encode(guard.tenants[number])
    for index, number in noted:
        yield f"{name}/guard/{number}/{index}", _encoder.encode(guard.open[index][number])


def _lane(lane: LaneState) -> _Lane:
    clock = lane.clock
    return _Lane(
        config=lane.config if lane.logic >= PRODUCERS_OWN else as_known_before(lane.config),
        members=[_Member(*key, clock.members[key]) for key in sorted(clock.members)],
        as_of_ms=clock.as_of_ms,
        watermark_ms=clock.watermark_ms,
        paused=clock.paused,
        closed_index=lane.closed_index,
        judged_index=lane.judged_index,
        quiet_floor=lane.quiet_floor,
        lost=lane.lost,
        tenants=lane.registry.tenants,
        services=len(lane.registry.services),
        edges=len(lane.registry),
        free=lane.registry.free,
        windows=sorted(lane.windows),
        tenant_states=sorted(lane.tenants),
    )


def restore(chunks: dict[str, bytes], can_run: int = LOGIC_VERSION) -> Machine:
    """Put a state machine together from the chunks of one checkpoint.

    Args:
        can_run: the latest logic version it may run.

    Raises:
        CheckpointError: a chunk is missing or damaged, or of a version this worker cannot read.
    """
    try:
        return _restore(chunks, can_run)
    except KeyError as error:
        raise CheckpointError(f"checkpoint lacks chunk {error}; restore an older one or start anew") from error
    except (msgspec.MsgspecError, ValueError, WireFormatError) as error:
        raise CheckpointError(f"checkpoint cannot be read: {error}") from error


def _restore(chunks: dict[str, bytes], can_run: int) -> Machine:
    version = msgspec.msgpack.decode(chunks["meta"]).get("version")
    if not isinstance(version, int) or not FIRST_VERSION <= version <= SNAPSHOT_VERSION:
        raise CheckpointError(
            f"the state is of version {version}, this worker reads {FIRST_VERSION} to {SNAPSHOT_VERSION}: a newer "
            "worker has written it; run that version, or a later one"
        )
    meta = msgspec.msgpack.decode(chunks["meta"], type=_Meta)
    machine = Machine(can_run)
    machine.offset = meta.offset
    machine.applied = {(source, partition): position for source, partition, position in meta.applied}
    machine.settings = meta.settings
    machine.logic = meta.logic or Logic(UNDECIDED if meta.offset < 0 and not meta.lanes else 1)
    if machine.logic.in_force > machine.can_run:
        raise CheckpointError(
            f"the state follows logic version {machine.logic.in_force}, this worker runs {machine.can_run} at most: "
            "run the version that wrote it, or a later one"
        )
    machine.taken = TakenOrigins(
        {
            (source, partition): _restore_taken((source, partition), size, chunks)
            for source, partition, size in meta.taken
        }
    )
    restore_ledgers(machine, meta.ledgers, chunks)
    documents = Documents(chunks)
    machine.inventories = {tenant: documents.rules(digests) for tenant, digests in meta.inventories.items()}
    machine.policies = {tenant: _restore_policies(digests, chunks) for tenant, digests in meta.policies.items()}
    for saved in meta.lanes:
        machine.lanes[saved.config.name] = _restore_lane(saved, chunks, documents)
        _restore_halves(machine.lanes[saved.config.name], meta.halves.get(saved.config.name, 0), chunks)
        machine.lanes[saved.config.name].logic = machine.logic.in_force
        machine.take_settings(machine.lanes[saved.config.name])
        machine.share_ledgers(machine.lanes[saved.config.name])
    return machine


def _restore_taken(source: tuple[str, int], size: int, chunks: dict[str, bytes]) -> IntColumn:
    pages = [msgspec.msgpack.decode(chunks[name], type=Positions) for name in _taken_pages(source, size)]
    positions = np.concatenate([unpack_positions(page) for page in pages])
    if len(positions) != size or (np.diff(positions) <= 0).any():
        raise CheckpointError(f"checkpoint cannot be read: the replays taken of {source[0]}[{source[1]}] are damaged")
    return positions


def _restore_lane(saved: _Lane, chunks: dict[str, bytes], documents: Documents) -> LaneState:
    name = saved.config.name
    lane = LaneState(saved.config)
    lane.clock = LaneClock(
        saved.config,
        {(member.source, member.partition): member.clock for member in saved.members},
        saved.as_of_ms,
        saved.watermark_ms,
        saved.paused,
    )
    lane.closed_index, lane.judged_index = saved.closed_index, saved.judged_index
    lane.quiet_floor, lane.lost = saved.quiet_floor, saved.lost
    registry = lane.registry
    registry.tenants = saved.tenants
    registry.tenant_number = {tenant: number for number, tenant in enumerate(saved.tenants)}
    registry.free = saved.free
    for page in _pages(saved.services):
        services = msgspec.msgpack.decode(chunks[f"{name}/services/{page}"], type=_ServicePage)
        registry.services += services.services
        _fill(registry.service, page, services.columns)
    registry.service_number = {service: number for number, service in enumerate(registry.services)}
    named: list[bool] = []
    for page in _pages(saved.edges):
        edges = msgspec.msgpack.decode(chunks[f"{name}/edges/{page}"], type=_EdgePage)
        named += _unpack(edges.named).tolist()
        _fill(registry.edge, page, edges.columns)
    registry.name_edges(named)
    registry.find_known_pairs()
    for index in saved.windows:
        lane.windows[index] = _restore_window(name, index, registry.edge.capacity, chunks)
    for number in saved.tenant_states:
        tenant = msgspec.msgpack.decode(chunks[f"{name}/tenant/{number}"], type=_Tenant)
        book = FindingBook(
            {key_of(saved.tenants[number], name, finding.detection): finding for finding in tenant.book.open},
            dict(tenant.book.closed),
            tenant.book.incidents,
            tenant.book.episode_floor,
        )
        edges_of = TenantEdges(tenant.count, tenant.overflow, None, tenant.quarantine)
        settling = (
            None if tenant.settling is None else restore_settling(name, number, tenant.settling, chunks, documents)
        )
        calendar = Calendar()
        for page in range(tenant.calendar):
            calendar.occasions.update(_calendar_decoder.decode(chunks[f"{name}/calendar/{number}/{page}"]))
        lane.tenants[tenant.number] = TenantState(
            tenant.closed_windows, edges_of, book, tenant.is_newcomer, settling, calendar
        )
        lane.tenants[tenant.number].rarity = restore_rarity(tenant.rarity)
    _restore_guard(lane.guard, name, chunks)
    return lane


def _restore_guard(guard: SourceGuard, name: str, chunks: dict[str, bytes]) -> None:
    if f"{name}/guard" not in chunks:
        return
    saved = msgspec.msgpack.decode(chunks[f"{name}/guard"], type=_Guard)
    for number in saved.tenants:
        guard.tenants[number] = msgspec.msgpack.decode(chunks[f"{name}/guard/{number}"], type=TenantTelemetry)
    for index, number in saved.noted:
        chunk = chunks[f"{name}/guard/{number}/{index}"]
        guard.open.setdefault(index, {})[number] = msgspec.msgpack.decode(chunk, type=Noted)


def _restore_halves(lane: LaneState, pages: int, chunks: dict[str, bytes]) -> None:
    for page in range(pages):
        part = msgspec.msgpack.decode(chunks[f"{lane.config.name}/halves/{page}"], type=_Halves)
        columns = {column: unpack_column(packed, part.count) for column, packed in part.columns.items()}
        lane.halves.put_back(part.edges, columns)


def _fill(columns: Columns, page: int, packed: dict[str, PackedArray]) -> None:
    start = page * PAGE_ROWS
    for name, array in packed.items():
        values = _unpack(array)
        columns.reserve(start + len(values))
        columns.array[name][start : start + len(values)] = values


def _restore_window(lane: str, index: int, capacity: int, chunks: dict[str, bytes]) -> WindowTable:
    head = msgspec.msgpack.decode(chunks[f"{lane}/window/{index}"], type=_WindowHead)
    window = WindowTable(index)
    window.incomplete = set(head.incomplete)
    window.denied_by_source = dict(head.denied_by_source)
    window.new_peers = {source: set(peers) for source, peers in head.new_peers}
    for side, page in head.pages:
        chunk = msgspec.msgpack.decode(chunks[f"{lane}/window/{index}/{side}/{page}"], type=_Window)
        measures = _unpack(chunk.measures)
        measures = np.pad(measures, ((0, len(MEASURES) - len(measures)), (0, 0)))
        window.restore_side(side, _unpack(chunk.edges), measures, capacity)
        window.add_histogram(side, *_unpack(chunk.histogram))
    return window
