"""/metrics, /livez and /readyz: status, body and content type of every state."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from schemas.errors import ConfigurationError
from streams.health import LIVE_S, READY_STATES, HealthServer, Readiness, State
from streams.metrics import Metrics


class Served:
    """What the server is told, and what it answers."""

    def __init__(self) -> None:
        self.readiness = Readiness(State.STARTING, ("no partitions are assigned yet",))
        self.beat_s = time.monotonic()
        self.metrics = Metrics()
        self.server = HealthServer("127.0.0.1", 0, self.metrics.registry, lambda: self.readiness, lambda: self.beat_s)

    def get(self, path: str) -> tuple[int, str, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}{path}", timeout=60) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read()


@contextmanager
def serving() -> Iterator[Served]:
    served = Served()
    try:
        yield served
    finally:
        served.server.close()


@pytest.mark.parametrize("state", list(State))
def test_readiness_is_503_with_the_state_and_reasons_unless_ready(state: State) -> None:
    with serving() as served:
        served.readiness = Readiness(state, ("because", "of this"))
        status, content_type, body = served.get("/readyz?verbose")
        said = json.loads(body)
        assert (said["state"], said["reasons"]) == (state.value, ["because", "of this"])
        if state in READY_STATES:
            assert (status, content_type) == (200, "application/json")
        else:
            assert (status, content_type) == (503, "application/problem+json")
            assert (said["status"], said["title"], said["detail"]) == (503, "Not ready", "because; of this")


def test_a_loop_that_does_not_turn_is_not_alive_whatever_the_readiness() -> None:
    with serving() as served:
        assert served.get("/livez")[0] == 200
        served.beat_s = time.monotonic() - LIVE_S - 1
        status, content_type, body = served.get("/livez")
        assert (status, content_type, json.loads(body)["state"]) == (503, "application/problem+json", "hanging")


def test_metrics_are_served_as_prometheus_reads_them() -> None:
    with serving() as served:
        served.metrics.flows_in.labels("flows").inc(3)
        status, content_type, body = served.get("/metrics")
        assert status == 200 and content_type.startswith("text/plain")
        assert b'drift_ingest_flows_total{topic="flows"} 3.0' in body


def test_other_paths_are_not_found() -> None:
    with serving() as served:
        status, _, body = served.get("/")
        assert status == 404 and b"/readyz" in body


def test_an_address_in_use_is_said_in_one_line() -> None:
    with serving() as served, pytest.raises(ConfigurationError, match=r"choose another worker\.metrics_port"):
        HealthServer("127.0.0.1", served.server.port, served.metrics.registry, lambda: served.readiness, time.monotonic)


def test_a_host_that_is_not_ours_is_said_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1:0 cannot be used .*worker\.metrics_host"):
        HealthServer("192.0.2.1", 0, Metrics().registry, lambda: Readiness(State.READY), time.monotonic)
