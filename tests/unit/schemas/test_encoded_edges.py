"""A record read from `tenant-log` keeps its edges encoded, and shows them as if it did not."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from models.graph.registry import Registry
from schemas.errors import WireFormatError
from schemas.tenant_log import EdgeIdentity, EncodedEdges, as_builtins, decode_record, encode_edge, encode_record
from tests.builders import make_flow, make_lane, record_of

EDGES: list[EdgeIdentity] = [("acme", "web", "cart", 8080, 6), ("acme", "web", "ext:käse", -1, -1)]


def as_they_are(edge: EdgeIdentity) -> EdgeIdentity:
    return edge


def numbers_of(registry: Registry, edges: Sequence[EdgeIdentity]) -> list[int]:
    found, looked_up = registry.numbers_of(edges, as_they_are)
    assert {code for code in range(len(edges)) if found[code] < 0} <= looked_up.keys()
    assert all(pair == (edges[code], edges[code]) for code, pair in looked_up.items())
    return [int(number) for number in found]


def encoded(edges: list[EdgeIdentity]) -> EncodedEdges:
    return EncodedEdges([msgspec.Raw(encode_edge(edge)) for edge in edges])


def test_a_decoded_record_equals_the_one_that_was_encoded_and_encodes_to_the_same_bytes() -> None:
    record = record_of(make_lane(), 0, 0, [make_flow(1), make_flow(2, dst="shop/pay"), make_flow(3)])
    data = encode_record(record)
    read = decode_record(data)
    assert read == record and record == read
    assert encode_record(read) == data
    assert as_builtins(read) == as_builtins(record)


def test_encoded_edges_are_a_sequence_of_identities() -> None:
    edges = encoded(EDGES)
    assert (len(edges), edges[1], edges[:1], list(edges)) == (2, EDGES[1], EDGES[:1], EDGES)
    assert edges != EDGES[:1]


def test_an_edge_that_is_none_is_refused_when_it_is_looked_at() -> None:
    edges = EncodedEdges([msgspec.Raw(msgspec.msgpack.encode(("acme", "web", 7, 8080, 6)))])
    with pytest.raises(WireFormatError, match="edge"):
        edges[0]


def test_the_registry_finds_encoded_edges_and_forgets_them() -> None:
    registry = Registry()
    assert numbers_of(registry, encoded(EDGES)) == [-1, -1]
    first, second = (registry.add_edge(edge) for edge in EDGES)
    for _ in range(2):  # by name at first, by bytes from then on
        assert numbers_of(registry, encoded(EDGES)) == [first, second]
    assert numbers_of(registry, EDGES) == [first, second]
    registry.forget(first)
    registry.release([first])
    assert numbers_of(registry, encoded(EDGES)) == [-1, second]
    assert registry.add_edge(("acme", "cart", "pay", 8080, 6)) == first
    assert numbers_of(registry, encoded(EDGES)) == [-1, second]


def test_an_edge_written_in_another_way_is_still_the_same_edge() -> None:
    registry = Registry()
    number = registry.add_edge(("acme", "web", "cart", 80, 6))
    longer = encode_edge(("acme", "web", "cart", 80, 6)).replace(b"\x50", b"\xcd\x00\x50")  # 80 as a two-byte integer
    for _ in range(2):
        assert numbers_of(registry, EncodedEdges([msgspec.Raw(longer)])) == [number]
    registry.forget(number)
    assert numbers_of(registry, EncodedEdges([msgspec.Raw(longer)])) == [-1]


def test_edges_of_one_name_are_found_by_the_bytes_of_each_and_forgotten_together() -> None:
    registry = Registry()
    calls: list[EdgeIdentity] = []

    def named(edge: EdgeIdentity) -> EdgeIdentity:
        calls.append(edge)
        return ("acme", "web", "ext:net/8.8.0.0/16", 53, 17)

    given: list[EdgeIdentity] = [("acme", "web", f"ip:8.8.8.{number}", 53, 17) for number in range(3)]
    name = named(given[0])
    looked_up = {code: (given[code], name) for code in range(3)}
    assert registry.numbers_of(encoded(given), named)[1] == looked_up
    assert registry.numbers_of(encoded(given), named, np.array([2, 2, 0]))[1].keys() == {0, 2}
    number = registry.add_edge(name)
    for _ in range(2):
        calls.clear()
        assert registry.numbers_of(encoded(given), named)[0].tolist() == [number] * 3
    assert not calls, "known edges are not named again"
    registry.forget_spellings()
    assert registry.numbers_of(encoded(given), named)[0].tolist() == [number] * 3
    assert calls == given
    registry.forget(number)
    assert registry.numbers_of(encoded(given), named)[0].tolist() == [-1] * 3


def test_spellings_are_forgotten_rather_than_kept_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.graph.registry._OTHER_SPELLINGS", 2)
    registry = Registry()
    name: EdgeIdentity = ("acme", "web", "ext:net/8.8.0.0/16", 53, 17)
    number = registry.add_edge(name)
    for last in range(5):
        given: list[EdgeIdentity] = [("acme", "web", f"ip:8.8.8.{last}", 53, 17)]
        assert registry.numbers_of(encoded(given), lambda edge: name)[0].tolist() == [number]
    assert sum(map(len, registry._other_spellings.values())) == registry._other_spellings_count <= 2
    registry.forget(number)
    assert not registry._number_of_encoded and not registry._other_spellings_count
