"""What verdicts rest on, as a checkpoint holds it: rarity of each tenant and lane, alerts of each tenant. Pure."""

from collections.abc import Iterator

import msgspec

from models.drift.alerting import AlertLedger, Day
from models.drift.rarity import Rarity
from models.graph.machine import Machine

LEDGERS_PAGE = 32
"""Tenants in one chunk of alerts: 45 days of 60 risks are 10 KiB."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")


class SavedRarity(msgspec.Struct, array_like=True):
    """``Rarity`` with its histograms as ``(bin, windows)``, sorted."""

    windows: int
    halvings: int
    loudest: list[tuple[str, list[tuple[int, int]]]]


class SavedLedger(msgspec.Struct, array_like=True):
    """``AlertLedger`` of a tenant; days as ``(day, alerts, (risk, findings))``, sorted."""

    tenant: str
    first_day: int
    floor: int
    days: list[tuple[int, int, list[tuple[int, int]]]]


def saved_rarity(rarity: Rarity) -> SavedRarity | None:
    """Return what to save of a rarity; ``None`` of one that nothing was counted of."""
    if rarity == Rarity():
        return None
    loudest = [(kind, sorted(rarity.loudest[kind].items())) for kind in sorted(rarity.loudest)]
    return SavedRarity(rarity.windows, rarity.halvings, loudest)


def restore_rarity(saved: SavedRarity | None) -> Rarity:
    """Return what was saved."""
    if saved is None:
        return Rarity()
    return Rarity(saved.windows, {kind: dict(bins) for kind, bins in saved.loudest}, saved.halvings)


def ledger_counts(machine: Machine) -> dict[str, int]:
    """Return of how many tenants alerts are counted, by lane."""
    return {lane: len(machine.ledgers[lane]) for lane in sorted(machine.ledgers) if machine.ledgers[lane]}


def ledger_chunks(machine: Machine, everything: bool) -> Iterator[tuple[str, bytes | None]]:
    """Yield the chunks of alerts, as ``take`` does."""
    for lane in sorted(machine.ledgers):
        # In the order in which tenants came, so that a page keeps its tenants.
        tenants = list(machine.ledgers[lane].items())
        for page, name in enumerate(_pages(lane, len(tenants))):
            some = tenants[page * LEDGERS_PAGE : (page + 1) * LEDGERS_PAGE]
            changed = everything or not all(ledger.is_stored for _, ledger in some)
            yield name, _encoder.encode([_saved(*each) for each in some]) if changed else None


def restore_ledgers(machine: Machine, counts: dict[str, int], chunks: dict[str, bytes]) -> None:
    """Put back what ``ledger_chunks`` gave."""
    for lane, size in counts.items():
        ledgers = machine.ledgers[lane] = {}
        for name in _pages(lane, size):
            for saved in msgspec.msgpack.decode(chunks[name], type=list[SavedLedger]):
                days = {day: Day(alerts, dict(candidates)) for day, alerts, candidates in saved.days}
                ledgers[saved.tenant] = AlertLedger(days, saved.first_day, saved.floor)


def mark_ledgers_stored(machine: Machine) -> None:
    """Note that a checkpoint holds all alerts."""
    for ledgers in machine.ledgers.values():
        for ledger in ledgers.values():
            ledger.is_stored = True


def _saved(tenant: str, ledger: AlertLedger) -> SavedLedger:
    days = [(n, ledger.days[n].alerts, sorted(ledger.days[n].candidates.items())) for n in sorted(ledger.days)]
    return SavedLedger(tenant, ledger.first_day, ledger.floor, days)


def _pages(lane: str, size: int) -> list[str]:
    return [f"/alerts/{lane}/{page}" for page in range(-(-size // LEDGERS_PAGE))]
