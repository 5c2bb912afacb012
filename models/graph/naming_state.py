"""Inventories, and changes of names under way, in chunks of a checkpoint. Pure; bytes in, bytes out.

Documents are stored by what they say: tenants, and times before a change, share them. The other chunks are cut so that
none is larger than 512 KiB.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from models.graph.machine import Machine
from models.graph.naming import Naming
from models.graph.rules import Document, Rules, read_document
from models.graph.settling import Settling

_PAGE = 900
"""Entries of a chunk: a pair of names has at most 512 bytes, and 16 more around it."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_names_decoder = msgspec.msgpack.Decoder(list[tuple[str, str]])
_services_decoder = msgspec.msgpack.Decoder(list[int])
_former_decoder = msgspec.msgpack.Decoder(list[tuple[int, str, str]])


class SavedSettling(msgspec.Struct):
    """What a tenant's chunk says of a change under way: ``documents`` that were in force before, by name their digest.

    ``pages``: how many chunks hold renamed services, unsettled ones, and former names of edges.
    """

    until: int
    documents: dict[str, str]
    prefix_v4: int
    prefix_v6: int
    as_given: bool
    pages: tuple[int, int, int]


def documents_of(machine: Machine) -> dict[str, Document]:
    """Return the documents of all inventories, and of those that were in force before, by digest."""
    rules = list(machine.inventories.values())
    for lane in machine.lanes.values():
        rules += [state.settling.before.rules for state in lane.tenants.values() if state.settling is not None]
    return {document.digest: document for some in rules for document in some.documents.values()}


def document_name(digest: str) -> str:
    """Name the chunk of a document. A lane's chunk has a name before the first slash."""
    return f"/inventory/{digest}"


def head_of(settling: Settling) -> SavedSettling:
    """Return what the tenant's own chunk says."""
    before = settling.before
    renamed, services, former = _parts(settling)
    return SavedSettling(
        until=settling.until,
        documents=before.rules.digests,
        prefix_v4=before.prefix_v4,
        prefix_v6=before.prefix_v6,
        as_given=before.as_given,
        pages=(_pages(len(renamed)), _pages(len(services)), _pages(len(former))),
    )


def settling_chunks(lane: str, tenant: int, settling: Settling) -> Iterator[tuple[str, bytes]]:
    """Yield the other chunks by name."""
    kinds: Iterable[Sequence[Any]] = _parts(settling)
    for kind, entries in zip(("renamed", "services", "former"), kinds, strict=True):
        for page in range(_pages(len(entries))):
            yield _name(lane, tenant, kind, page), _encoder.encode(entries[page * _PAGE : (page + 1) * _PAGE])


def _parts(settling: Settling) -> tuple[list[tuple[str, str]], list[int], list[tuple[int, str, str]]]:
    former = [(number, *ends) for number in sorted(settling.former) for ends in sorted(settling.former[number])]
    return sorted(settling.renamed.items()), sorted(settling.services), former


def _pages(size: int) -> int:
    return -(-size // _PAGE)


def _name(lane: str, tenant: int, kind: str, page: int) -> str:
    return f"{lane}/settling/{tenant}/{kind}/{page}"


class Documents:
    """Documents of a checkpoint, each read once."""

    def __init__(self, chunks: dict[str, bytes]) -> None:
        self._chunks = chunks
        self._read: dict[str, Document] = {}

    def rules(self, digests: dict[str, str]) -> Rules:
        """Return an inventory by the digests of its documents."""
        for digest in digests.values():
            if digest not in self._read:
                self._read[digest] = read_document(self._chunks[document_name(digest)])
        return Rules({name: self._read[digest] for name, digest in digests.items()})


def restore_settling(
    lane: str, tenant: int, saved: SavedSettling, chunks: dict[str, bytes], documents: Documents
) -> Settling:
    """Put a change under way together.

    Raises:
        KeyError: a chunk is missing.
        ValueError: one is damaged.
    """
    before = Naming(documents.rules(saved.documents), saved.prefix_v4, saved.prefix_v6, saved.as_given)
    settling = Settling(saved.until, before)
    renamed, services, former = saved.pages
    for page in range(renamed):
        settling.renamed.update(_names_decoder.decode(chunks[_name(lane, tenant, "renamed", page)]))
    for page in range(services):
        settling.services.update(_services_decoder.decode(chunks[_name(lane, tenant, "services", page)]))
    for page in range(former):
        for number, src, dst in _former_decoder.decode(chunks[_name(lane, tenant, "former", page)]):
            settling.former.setdefault(number, set()).add((src, dst))
    return settling
