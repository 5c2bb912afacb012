"""Apache Kafka from its Maven artifacts: one KRaft node (broker and controller) on loopback, without Docker.

For tests and development: needs `java` (17 or later) and `mvn`; `deploy/kafka/pom.xml` pins the version.
"""

import hashlib
import os
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.brokers.process import ServerProcess, accepts_connections, free_port, last_lines, require_free_port
from schemas.errors import ConfigurationError

POM = Path(__file__).resolve().parent.parent / "kafka" / "pom.xml"
DEADLINE_S = 300.0
RESOLVE_DEADLINE_S = 300.0
HOST = "127.0.0.1"
_STARTED = b"Kafka Server started"


@dataclass(frozen=True, slots=True)
class Listener:
    """A listener of the broker.

    Attributes:
        name: unique, upper case; key of ``KafkaBroker.addresses``.
        protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        config: broker settings of this listener alone, without the ``listener.name.<name>.`` prefix.
        port: 0 takes a free one.
    """

    name: str = "PLAINTEXT"
    protocol: str = "PLAINTEXT"
    config: Mapping[str, str] = field(default_factory=dict)
    port: int = 0


def tool(name: str) -> str:
    """Return the path of a program.

    Raises:
        ConfigurationError: it is not on the path.
    """
    path = shutil.which(name)
    if path is None:
        raise ConfigurationError(f"Apache Kafka from Maven needs {name}: it is not on the PATH")
    return path


def resolve_classpath(cache: Path, *, deadline_s: float = RESOLVE_DEADLINE_S) -> str:
    """Return the class path of the broker, asking Maven once and keeping the answer in ``cache``.

    Raises:
        ConfigurationError: no `mvn`, or the artifacts cannot be had (no route to a repository); says what Maven said.
    """
    if not POM.is_file():
        raise ConfigurationError("deploy/kafka/pom.xml is not installed: run from a checkout of the repository")
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"kafka-classpath-{hashlib.sha256(POM.read_bytes()).hexdigest()[:16]}.txt"
    if kept.is_file():
        classpath = kept.read_text(encoding="utf-8").strip()
        if classpath and all(Path(jar).is_file() for jar in classpath.split(os.pathsep)):
            return classpath
    fresh = kept.with_suffix(f".{os.getpid()}")
    command = [tool("mvn"), "-q", "-B", "-f", str(POM), "dependency:build-classpath", f"-Dmdep.outputFile={fresh}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"Maven did not resolve Apache Kafka within {deadline_s:g} s") from error
    if done.returncode != 0 or not fresh.is_file():
        said = next((line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line), "no reason given")
        raise ConfigurationError(f"Maven cannot resolve Apache Kafka: {said[:300]}")
    fresh.replace(kept)
    return kept.read_text(encoding="utf-8").strip()


class KafkaBroker:
    """One Apache Kafka node. What it holds stays in ``directory``: `kill` and `start` again is a broker restart.

    The node ends when this object is dropped, or its process dies.

    Args:
        directory: data, configuration and log.
        listeners: for clients; the first also carries the broker's own traffic, so it must be PLAINTEXT
            unless ``config`` says how the broker is its own client.
        scram_users: name to password, made for SCRAM-SHA-256 and SCRAM-SHA-512 when the storage is formatted.
        config: further broker settings; they win over ours.
        cache: where the resolved class path is kept; default ``directory``.
        heap_mb: Java heap.
        forget: files that announce this broker; removed when its users are gone.
    """

    def __init__(
        self,
        directory: Path,
        *,
        listeners: Sequence[Listener] = (Listener(),),
        scram_users: Mapping[str, str] | None = None,
        config: Mapping[str, str] | None = None,
        cache: Path | None = None,
        heap_mb: int = 512,
        forget: Sequence[Path] = (),
    ) -> None:
        self.directory = directory.absolute()
        self.listeners = list(listeners)
        self.ports = {listener.name: listener.port for listener in self.listeners}
        self._controller_port = 0
        self._scram_users = dict(scram_users or {})
        self._config = dict(config or {})
        self._cache = cache or self.directory
        self._heap_mb = heap_mb
        self._forget = forget
        self._process: ServerProcess | None = None

    @property
    def addresses(self) -> dict[str, str]:
        """Return listener name to ``host:port``; known once started."""
        return {name: f"{HOST}:{port}" for name, port in self.ports.items()}

    @property
    def address(self) -> str:
        """Return the first listener's ``host:port``."""
        return self.addresses[self.listeners[0].name]

    @property
    def process(self) -> ServerProcess:
        """Return the process, for its pid and log.

        Raises:
            RuntimeError: the broker has not been started.
        """
        if self._process is None:
            raise RuntimeError("Apache Kafka has not been started")
        return self._process

    def start(self, deadline_s: float = DEADLINE_S) -> "KafkaBroker":
        """Format the storage (the first time), start the node and wait until it serves (blocking).

        Starting again after `stop` or `kill` keeps data, ports and cluster id.

        Raises:
            ConfigurationError: no Java or Maven, no artifacts, a port is taken, or the node does not start.
        """
        java = tool("java")
        classpath = resolve_classpath(self._cache)
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, port in self.ports.items():
            if port:
                require_free_port(HOST, port, f"the port of listener {name}")
            self.ports[name] = port or free_port(HOST)
        self._controller_port = self._controller_port or free_port(HOST)
        properties = self.directory / "server.properties"
        properties.write_text(
            "".join(f"{key}={_escape(value)}\n" for key, value in self.properties().items()), encoding="utf-8"
        )
        properties.chmod(0o600)  # may hold passwords
        if not (self.directory / "data" / "meta.properties").is_file():
            self._format(java, classpath, properties)
        log = self.directory / "kafka.log"
        log.unlink(missing_ok=True)  # "started" must be this start's
        command = [java, "-Xms128m", f"-Xmx{self._heap_mb}m", "-Dlog4j2.level=INFO", "-cp", classpath]
        self._process = ServerProcess(
            "kafka", [*command, "kafka.Kafka", str(properties)], self.directory, forget=self._forget
        )
        self._process.start()
        self._process.wait_until(lambda: self._serves(log), deadline_s)
        return self

    def properties(self) -> dict[str, str]:
        """Return the node's configuration; ports must be known."""
        clients = [f"{listener.name}://{HOST}:{self.ports[listener.name]}" for listener in self.listeners]
        protocols = [f"{listener.name}:{listener.protocol}" for listener in self.listeners]
        values = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join([*clients, f"CONTROLLER://{HOST}:{self._controller_port}"]),
            "advertised.listeners": ",".join(clients),
            "listener.security.protocol.map": ",".join([*protocols, "CONTROLLER:PLAINTEXT"]),
            "inter.broker.listener.name": self.listeners[0].name,
            "log.dirs": str(self.directory / "data"),
            "auto.create.topics.enable": "false",  # as in production: a topic nobody declared is an error
            "offsets.topic.num.partitions": "3",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "3",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "broker.session.timeout.ms": "3000",  # how long a node that was killed waits for itself (9 s by default)
            "broker.heartbeat.interval.ms": "500",
            "socket.request.max.bytes": str(100 << 20),
        }
        for listener in self.listeners:
            prefix = f"listener.name.{listener.name.lower()}."
            values.update({prefix + key: value for key, value in listener.config.items()})
        return values | self._config

    def stop(self) -> None:
        """End it in order. Nothing happens if it does not run."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End it at once, as a crash would; `start` brings it back with what it had written."""
        self.process.kill()

    def pause(self) -> None:
        """Freeze it: clients see a broker that does not answer."""
        self.process.pause()

    def resume(self) -> None:
        """Let a frozen broker go on."""
        self.process.resume()

    def __enter__(self) -> "KafkaBroker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _format(self, java: str, classpath: str, properties: Path) -> None:
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        cluster = cluster.replace("-", "A")  # a leading dash would be taken for an option
        command = [java, "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", classpath, "kafka.tools.StorageTool", "format"]
        command += ["-t", cluster, "-c", str(properties)]
        for name, password in self._scram_users.items():
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                command += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        log = self.directory / "format.log"
        with log.open("wb") as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=DEADLINE_S
            )
        if done.returncode != 0:
            raise ConfigurationError(f"Apache Kafka's storage cannot be formatted: {last_lines(log)}")

    def _serves(self, log: Path) -> bool:
        return all(accepts_connections(HOST, port) for port in self.ports.values()) and _STARTED in log.read_bytes()


def _escape(value: str) -> str:
    """Write a value as a Java properties file takes it."""
    return value.replace("\\", "\\\\").replace("\n", "\\n")
