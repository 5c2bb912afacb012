"""Fixtures alone. Further ones go into ``tests/fixtures_<what>.py``, which is loaded as a plugin."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from pydantic import SecretStr

from deploy.brokers.kafka import KafkaBroker
from schemas.settings import ClickHouseSettings, FlowTopic, KafkaSettings, Settings, TopicSettings, WorkerSettings
from schemas.topics import INTERNAL_AND_PUBLIC
from tests import brokers

pytest_plugins = [f"tests.{path.stem}" for path in sorted(Path(__file__).parent.glob("fixtures_*.py"))]


# The machine may be busy: how long an example takes decides nothing.
settings.register_profile("drift", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("drift")


@pytest.fixture(scope="session")
def session_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def kafka_cache(request: pytest.FixtureRequest) -> Path:
    """Where the class path of Apache Kafka is kept between sessions."""
    cache: Path = request.config.cache.mkdir("kafka")
    return cache


@pytest.fixture(scope="session")
def kafka_bootstrap(session_directory: Path, kafka_cache: Path) -> Iterator[str]:
    """Address of the first broker that can be had; the terminal summary says which, and why no earlier one."""
    try:
        with brokers.chosen_broker(session_directory / "brokers", kafka_cache) as choice:
            print(choice.line)
            yield choice.address
    except brokers.NoBroker as reason:
        pytest.fail(f"no broker can be had: {reason}")


@pytest.fixture(scope="session")
def apache_kafka_listeners(session_directory: Path, kafka_cache: Path) -> Iterator[dict[str, str]]:
    """Addresses of the session's Apache Kafka from Maven by listener (`brokers.apache_listeners`).

    Skips where it cannot be had; fails instead in CI with Java and Maven.
    """
    try:
        with brokers.shared_broker(brokers.APACHE_KAFKA, session_directory / "brokers", kafka_cache) as addresses:
            yield addresses
    except brokers.NoBroker as reason:
        text = f"no Apache Kafka from Maven: {reason}"
        if brokers.must_have_apache_kafka():
            pytest.fail(text)
        pytest.skip(text)


@pytest.fixture(scope="session")
def apache_kafka(apache_kafka_listeners: dict[str, str]) -> str:
    """Address of the session's Apache Kafka, without TLS or log-in; skips where it cannot be had."""
    return apache_kafka_listeners[brokers.PLAINTEXT]


@pytest.fixture(scope="session")
def certificates(apache_kafka_listeners: dict[str, str], session_directory: Path) -> Path:
    """Where the certificates of the session's Apache Kafka are (`tests.certificates`)."""
    return brokers.certificates_of(session_directory / "brokers")


@pytest.fixture(scope="session")
def tansu_bootstrap(session_directory: Path, kafka_cache: Path) -> Iterator[str]:
    """Address of the session's Tansu."""
    with brokers.shared_broker(brokers.TANSU, session_directory / "brokers", kafka_cache) as addresses:
        yield addresses[brokers.PLAINTEXT]


@pytest.fixture
def own_kafka(apache_kafka: str, kafka_cache: Path, tmp_path: Path) -> Iterator[Callable[..., KafkaBroker]]:
    """Make Apache Kafka nodes of one's own (arguments of `KafkaBroker`), to restart, kill or freeze."""
    made: list[KafkaBroker] = []

    def make(**arguments: Any) -> KafkaBroker:
        made.append(KafkaBroker(tmp_path / f"kafka-{len(made)}", cache=kafka_cache, **arguments))
        return made[-1]

    try:
        yield make
    finally:
        for broker in made:
            broker.stop()


@pytest.fixture
def unique_name() -> str:
    """A name no other test has, for topics and groups."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def settings_for(unique_name: str, tmp_path: Path) -> Callable[..., Settings]:
    """Make settings for a broker: few partitions, and names of topics and group that no other test has.

    ``settings_for(bootstrap, partitions=3, **changes)``; ``changes`` are fields of `Settings`.
    """

    def make(bootstrap: str, *, partitions: int = 3, **changes: Any) -> Settings:
        names = {topic.role: f"{unique_name}-{topic.default_name}" for topic in INTERNAL_AND_PUBLIC}
        values: dict[str, Any] = {
            "kafka": KafkaSettings(bootstrap=bootstrap, session_timeout_ms=6_000, rebalance_timeout_ms=6_000),
            "topics": TopicSettings(names=names, partitions=partitions),
            "flows": (FlowTopic(topic=f"{unique_name}-flows"),),
            "worker": WorkerSettings(group=unique_name, state_directory=tmp_path / "state"),
            "clickhouse": ClickHouseSettings(dsn=SecretStr(f"chdb://{tmp_path}/clickhouse")),
        }
        return Settings(**(values | changes))

    return make


def pytest_configure() -> None:
    """Take out of the environment what would change what tests see, and aiokafka's own lines out of what is captured.

    Servers of tests are on loopback: no proxy is asked for them. Output is that of no terminal, of the usual width.

    While a broker is away on purpose it logs hundreds of failed connections a second; in a CI log that is cut at some
    length they stand where the assertion should. What must not be missed, our own code logs. A test that reads these
    lines sets the level itself.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    for name in ("TERM", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        os.environ.pop(name, None)
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost")))


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """Say which broker the session used."""
    line = brokers.read_choice(config._tmp_path_factory.getbasetemp() / "brokers")
    if line is not None:
        terminalreporter.write_line(line)
