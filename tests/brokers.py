"""Which broker the tests use, and one process that keeps it for all of pytest-xdist's workers.

A *holder* process starts the broker, announces its address in a file, and stops it when the last user has let go of a
lock or has died. Run as a script, this module is that holder: ``python tests/brokers.py KIND DIRECTORY CACHE``.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.brokers.kafka import KafkaBroker, Listener, resolve_classpath, tool
from deploy.brokers.process import hold, last_lines
from deploy.brokers.tansu import TansuBroker
from schemas.errors import ConfigurationError
from tests.certificates import write_certificates

ROOT = Path(__file__).resolve().parent.parent
DOCKER, APACHE_KAFKA, TANSU = "docker", "apache-kafka", "tansu"
PLAINTEXT = "PLAINTEXT"
USER, PASSWORD = "drift-user", "drift-password"
"""A user of Apache Kafka's listeners ``SCRAM``, ``SCRAM_CLEAR`` (also PLAIN)."""
START_DEADLINE_S = 900.0
MAVEN_DEADLINE_S = 150.0
_children: list[subprocess.Popen[bytes]] = []  # holders outlive the fixtures that started them


@dataclass(frozen=True)
class Choice:
    """The broker that was taken, and why each one before it was not."""

    kind: str
    address: str
    passed_over: dict[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Return it as one line for the terminal summary."""
        why = "".join(f"; not {kind}: {reason}" for kind, reason in self.passed_over.items())
        return f"broker of the tests: {self.kind} at {self.address}{why}"


class NoBroker(Exception):
    """This kind of broker cannot be had here; the text says why."""


@contextlib.contextmanager
def chosen_broker(directory: Path, cache: Path) -> Iterator[Choice]:
    """Use the first broker that can be had: KAFKA_BOOTSTRAP, Docker, Apache Kafka from Maven, Tansu.

    Args:
        directory: shared by all workers of one session.
        cache: kept between sessions.

    Raises:
        NoBroker: none of them.
    """
    named = os.environ.get("KAFKA_BOOTSTRAP")
    if named:
        yield _record(directory, Choice("KAFKA_BOOTSTRAP", named))
        return
    passed_over = {"KAFKA_BOOTSTRAP": "not set"}
    for kind in (DOCKER, APACHE_KAFKA, TANSU):
        with contextlib.ExitStack() as stack:
            try:
                address = stack.enter_context(shared_broker(kind, directory, cache))[PLAINTEXT]
            except NoBroker as reason:
                passed_over[kind] = str(reason)
                continue
            yield _record(directory, Choice(kind, address, passed_over))
            return
    raise NoBroker("; ".join(f"{kind}: {reason}" for kind, reason in passed_over.items()))


@contextlib.contextmanager
def shared_broker(kind: str, directory: Path, cache: Path) -> Iterator[dict[str, str]]:
    """Join the session's broker of this kind, starting it if nobody has; yields ``host:port`` by listener.

    All have ``PLAINTEXT``; Apache Kafka also has the listeners of `apache_listeners`.

    Raises:
        NoBroker: it cannot be had here.
    """
    home = directory / kind
    home.mkdir(parents=True, exist_ok=True)
    announcement = home / "announcement.json"
    with (home / "start.lock").open("ab") as start_lock:
        fcntl.flock(start_lock, fcntl.LOCK_EX)  # one worker looks or starts at a time
        users = hold(home / "users")  # waits for a holder that is just ending its broker
        if not announcement.is_file():
            _start_holder(kind, home, cache, announcement)
    try:
        said = json.loads(announcement.read_text(encoding="utf-8"))
        if "error" in said:
            raise NoBroker(said["error"])
        yield said["addresses"]
    finally:
        users.close()


def certificates_of(directory: Path) -> Path:
    """Return where the certificates of the session's Apache Kafka are (tests/certificates.py)."""
    return directory / "certificates"


def apache_listeners(certificates: Path) -> list[Listener]:
    """Return a listener for each way people connect; the broker's own traffic is on the first."""
    tls = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates / "ca.pem"),
    }
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    oauth = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
    passwords = {
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,SCRAM-SHA-256,PLAIN",
        "scram-sha-512.sasl.jaas.config": scram,
        "scram-sha-256.sasl.jaas.config": scram,
        "plain.sasl.jaas.config": plain,
    }
    return [
        Listener(PLAINTEXT),
        Listener("TLS", "SSL", tls),
        Listener("MUTUAL", "SSL", tls | {"ssl.client.auth": "required"}),
        Listener("SCRAM", "SASL_SSL", tls | passwords),
        Listener("SCRAM_CLEAR", "SASL_PLAINTEXT", passwords),
        Listener(
            "OAUTH",
            "SASL_SSL",
            tls
            | {
                "sasl.enabled.mechanisms": "OAUTHBEARER",
                "oauthbearer.sasl.jaas.config": f'{oauth} unsecuredLoginStringClaim_sub="broker";',
            },
        ),
    ]


def read_choice(directory: Path) -> str | None:
    """Return the line that says which broker was chosen in this session; ``None`` if no test wanted one."""
    try:
        return Choice(**json.loads((directory / "choice.json").read_text(encoding="utf-8"))).line
    except OSError:
        return None


def must_have_apache_kafka() -> bool:
    """Say whether a missing Apache Kafka is a failure here: in CI, where Java and Maven are."""
    return os.environ.get("CI") == "true" and shutil.which("java") is not None and shutil.which("mvn") is not None


def _record(directory: Path, choice: Choice) -> Choice:
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "choice.json", asdict(choice))
    return choice


def _write(path: Path, value: object) -> None:
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(value), encoding="utf-8")
    fresh.replace(path)


def _start_holder(kind: str, home: Path, cache: Path, announcement: Path) -> None:
    log = home / "holder.log"
    with log.open("ab") as output:
        holder = subprocess.Popen(
            [sys.executable, __file__, kind, str(home), str(cache)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TESTCONTAINERS_RYUK_DISABLED": "true"},
            start_new_session=True,
        )
    _children.append(holder)
    end = time.monotonic() + START_DEADLINE_S
    while not announcement.is_file():
        if holder.poll() is not None and not announcement.is_file():
            raise NoBroker(f"its holder ended: {last_lines(log)}")
        if time.monotonic() > end:
            holder.terminate()
            raise NoBroker(f"not ready after {START_DEADLINE_S:g} s")
        time.sleep(0.05)


@contextlib.contextmanager
def _docker_kafka() -> Iterator[dict[str, str]]:
    """Start Kafka in a container; the holder removes it, so testcontainers' own reaper is not needed."""
    try:
        import docker  # type: ignore[import-untyped]

        docker.from_env(timeout=5).ping()
    except Exception as error:
        raise NoBroker("no Docker engine answers") from error
    try:
        from testcontainers.community.kafka import KafkaContainer
    except ImportError:  # before testcontainers 4.15
        from testcontainers.kafka import KafkaContainer
    container = KafkaContainer("confluentinc/cp-kafka:7.6.0").with_kraft()
    container.with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
    try:
        container.start(timeout=90)
        yield {PLAINTEXT: container.get_bootstrap_server()}
    except Exception as error:  # no such image, no route to the registry, no memory
        raise NoBroker(f"container: {' '.join(str(error).split())[:200]}") from error
    finally:
        with contextlib.suppress(Exception):
            container.stop()


@contextlib.contextmanager
def _started(kind: str, home: Path, cache: Path) -> Iterator[dict[str, str]]:
    if kind == DOCKER:
        with _docker_kafka() as addresses:
            yield addresses
    elif kind == APACHE_KAFKA:
        tool("java")
        resolve_classpath(cache, deadline_s=MAVEN_DEADLINE_S)
        certificates = certificates_of(home.parent)
        write_certificates(certificates)
        with KafkaBroker(
            home / "broker",
            cache=cache,
            listeners=apache_listeners(certificates),
            scram_users={USER: PASSWORD},
            # Nobody kills it: a busy machine must not make it lose itself, and everybody their leaders and groups.
            config={"broker.session.timeout.ms": "60000"},
        ) as kafka:
            yield kafka.addresses
    else:
        with TansuBroker(home / "broker") as tansu:
            yield {PLAINTEXT: tansu.address}


def main(kind: str, home: Path, cache: Path) -> None:
    """Hold one broker until its last user has gone; what it stored is deleted then."""
    announcement = home / "announcement.json"
    with (home / "users").open("ab") as users:
        try:
            with _started(kind, home, cache) as addresses:
                _write(announcement, {"addresses": addresses})
                fcntl.flock(
                    users, fcntl.LOCK_EX
                )  # kept until the broker has gone, or a new user would take its address
                announcement.unlink()
        except (ConfigurationError, NoBroker) as error:
            _write(announcement, {"error": str(error)})
        shutil.rmtree(home / "broker", ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
