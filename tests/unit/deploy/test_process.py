"""Ports for servers that we start."""

import socket
from pathlib import Path

import pytest

from deploy.brokers import process
from deploy.brokers.process import free_port


def test_a_servers_port_is_none_that_the_kernel_lends_to_connections() -> None:
    try:
        lent_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        pytest.skip("this kernel does not say which ports it lends (no Linux)")
    if lent_from <= process._LOWEST_PORT:
        pytest.skip(f"this kernel lends nearly every port, from {lent_from} on")
    with socket.create_server(("127.0.0.1", 0)) as lent:
        assert lent.getsockname()[1] >= lent_from
    assert all(process._LOWEST_PORT <= free_port() < lent_from for _ in range(20))


def test_a_port_in_use_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    # Held from here on: a port that was free a moment ago may be somebody else's by now.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(process, "_LOWEST_PORT", port)
        monkeypatch.setattr(process, "_lowest_port_of_connections", lambda: port + 1)
        assert free_port() != port


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_given", set())
    assert len({free_port() for _ in range(1_000)}) == 1_000
