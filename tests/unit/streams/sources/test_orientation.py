"""Who is the client: the record's word, else the ports; no client's port becomes an edge's."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from streams.sources.orientation import (
    CLIENT_IS_DST,
    CLIENT_IS_SRC,
    EPHEMERAL_FROM,
    NOT_SAID,
    client_is_dst,
    said_by_sensor,
    server_port,
)


def judge(src: int, dst: int, said: int | None = None) -> tuple[bool, int]:
    ports = np.array([src]), np.array([dst])
    word = None if said is None else np.array([said])
    swapped = client_is_dst(*ports, word)
    return bool(swapped[0]), int(server_port(*ports, swapped, word)[0])


@pytest.mark.parametrize(
    ("src", "dst", "swapped", "port"),
    [
        (43210, 443, False, 443),
        (443, 43210, True, 443),
        (5601, 33478, True, 5601),
        (8080, 5432, False, 5432),
        (1500, 8080, False, 8080),
        (53, 5353, True, 53),
        (123, 123, False, 123),
        (40000, 50000, True, -1),
        (50000, 40000, False, -1),
        (-1, 80, False, 80),
        (80, -1, True, 80),
        (0, 80, False, 80),
        (-1, -1, False, -1),
        (0, 0, False, -1),
        (30080, 45000, True, 30080),
    ],
)
def test_ports_tell_the_server(src: int, dst: int, swapped: bool, port: int) -> None:
    assert judge(src, dst) == (swapped, port)
    assert judge(src, dst, NOT_SAID) == (swapped, port)


def test_the_record_is_believed_over_its_ports() -> None:
    assert judge(443, 43210, CLIENT_IS_SRC) == (False, 43210)
    assert judge(43210, 443, CLIENT_IS_DST) == (True, 43210)
    assert judge(443, 0, CLIENT_IS_SRC) == (False, -1)


@given(st.integers(-1, 65_535), st.integers(-1, 65_535))
def test_both_directions_of_a_flow_are_one_edge(one: int, other: int) -> None:
    forward, backward = judge(one, other), judge(other, one)
    assert forward[1] == backward[1] < EPHEMERAL_FROM
    if one != other and {one, other} != {-1, 0}:
        assert forward[0] != backward[0]


def test_a_sensor_is_believed_where_it_can_know() -> None:
    ports = np.array([53, 53, 443, 443, 40000]), np.array([51515, 53, 50000, 50000, 80])
    tcp = np.array([False, False, True, True, False])
    seen = np.array([False, False, True, False, False])
    assert said_by_sensor(*ports, seen, tcp).tolist() == [
        NOT_SAID,
        CLIENT_IS_SRC,
        CLIENT_IS_SRC,
        NOT_SAID,
        CLIENT_IS_SRC,
    ]
