"""Brokers that we start: clear errors, nothing left behind when their user is killed, data kept over a crash."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka.admin import NewTopic

import deploy.brokers.tansu
from deploy.brokers.kafka import KafkaBroker, resolve_classpath
from deploy.brokers.tansu import TansuBroker
from schemas.errors import ConfigurationError
from schemas.settings import KafkaSettings
from streams.kafka_clients import check_connection, make_admin, make_consumer, make_producer
from tests import brokers

pytestmark = pytest.mark.kafka


async def test_tansu_serves_and_goes(tmp_path: Path) -> None:
    with TansuBroker(tmp_path) as broker:
        await check_connection(KafkaSettings(bootstrap=broker.address))
        assert broker.process.pid is not None
    with pytest.raises(ConfigurationError, match="no Kafka at"):
        await check_connection(KafkaSettings(bootstrap=broker.address))


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{port} .*in use.* another port with --kafka-port"):
            TansuBroker(tmp_path, port=port).start()


def test_a_binary_that_does_not_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "tansu"
    binary.write_bytes(b"\x7fELF of another machine")
    binary.chmod(0o755)
    monkeypatch.setattr(deploy.brokers.tansu, "tansu_binary", lambda _: binary)
    with pytest.raises(ConfigurationError, match="tansu cannot be started"):
        TansuBroker(tmp_path / "log").start()


def test_a_broker_that_dies_while_it_starts_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "tansu"
    binary.write_text("#!/bin/sh\necho no luck today\nexit 3\n")
    binary.chmod(0o755)
    monkeypatch.setattr(deploy.brokers.tansu, "tansu_binary", lambda _: binary)
    with pytest.raises(ConfigurationError, match="ended while it started: no luck today"):
        TansuBroker(tmp_path / "log").start()


def test_a_broker_ends_with_a_user_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from deploy.brokers.tansu import TansuBroker\n"
        "broker = TansuBroker(Path(sys.argv[1])).start(); print(broker.process.pid, flush=True); time.sleep(600)"
    )
    user = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(brokers.ROOT)},
    )
    try:
        assert user.stdout is not None
        pid = int(user.stdout.readline())
        assert _is_alive(pid)
    finally:
        user.send_signal(signal.SIGKILL)
        user.communicate()
    end = time.monotonic() + 120
    while _is_alive(pid):
        assert time.monotonic() < end, "the broker outlived its user"
        time.sleep(0.05)


async def test_kafka_keeps_what_it_acknowledged_over_a_crash(
    own_kafka: Callable[..., KafkaBroker], unique_name: str
) -> None:
    broker = await asyncio.to_thread(own_kafka().start)
    settings = KafkaSettings(bootstrap=broker.address)
    admin, producer = make_admin(settings), make_producer(settings)
    await admin.start()
    await admin.create_topics([NewTopic(unique_name, 1, 1)])
    await admin.close()
    await producer.start()
    for value in (b"a", b"b", b"c"):
        await producer.send_and_wait(unique_name, value)
    await producer.stop()

    broker.kill()
    await asyncio.to_thread(broker.start)

    consumer = make_consumer(settings, unique_name)
    await consumer.start()
    try:
        got = [(await asyncio.wait_for(consumer.getone(), 120)).value for _ in range(3)]
    finally:
        await consumer.stop()
    assert got == [b"a", b"b", b"c"]


async def test_a_frozen_broker_goes_on(tmp_path: Path) -> None:
    with TansuBroker(tmp_path) as broker:
        settings = KafkaSettings(bootstrap=broker.address)
        broker.pause()
        with pytest.raises(ConfigurationError, match="no answer within 1 s"):
            await check_connection(settings, timeout_s=1)
        broker.resume()
        await check_connection(settings, timeout_s=120)


def test_without_maven_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="needs mvn: it is not on the PATH"):
        resolve_classpath(tmp_path)


def test_maven_without_a_repository_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven = tmp_path / "mvn"
    maven.write_text('#!/bin/sh\necho "[ERROR] Could not transfer artifact: Network is unreachable"\nexit 1\n')
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ConfigurationError, match=r"cannot resolve Apache Kafka: .*Network is unreachable"):
        resolve_classpath(tmp_path / "cache")


def test_without_docker_and_java_tansu_is_taken_and_the_reasons_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    monkeypatch.delenv("KAFKA_BOOTSTRAP", raising=False)
    with (
        brokers.chosen_broker(tmp_path, tmp_path / "cache") as first,
        brokers.chosen_broker(tmp_path, tmp_path / "cache") as second,
    ):
        assert first == second  # the same process
    assert first.kind == brokers.TANSU
    assert list(first.passed_over) == ["KAFKA_BOOTSTRAP", brokers.DOCKER, brokers.APACHE_KAFKA]
    line = brokers.read_choice(tmp_path)
    assert line is not None
    assert "not docker: no Docker engine answers; not apache-kafka: Apache Kafka from Maven needs java" in line


async def test_every_session_has_a_broker(kafka_bootstrap: str) -> None:
    await check_connection(KafkaSettings(bootstrap=kafka_bootstrap))


def test_a_named_broker_is_taken_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "kafka.example:9092")
    with brokers.chosen_broker(tmp_path, tmp_path) as choice:
        assert choice == brokers.Choice("KAFKA_BOOTSTRAP", "kafka.example:9092")


def _is_alive(pid: int) -> bool:
    """Say whether the process runs; one that ended and was not waited for yet does not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
