"""Opening ClickHouse when something is wrong: real sockets, real certificates, a real second process."""

import http.server
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from schemas.errors import ConfigurationError
from schemas.settings import ClickHouseSettings
from streams.clickhouse import connect

PASSWORD = "s3cret"


class _RefusesPassword(http.server.BaseHTTPRequestHandler):
    """Answers every query like a server that does not know the password."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"Code: 516. DB::Exception: ana: Authentication failed: password is incorrect. (AUTHENTICATION_FAILED)"
        self.send_response(403)
        self.send_header("X-ClickHouse-Exception-Code", "516")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _server(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _RefusesPassword)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=60)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "drift test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


def _tls_server_context(certificate: tuple[Path, Path], wants_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if wants_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificate[0])
    return context


def _problem(dsn: str, **changes: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        connect(ClickHouseSettings(dsn=SecretStr(dsn), **changes))  # type: ignore[arg-type]
    text = str(caught.value)
    assert PASSWORD not in text
    assert "\n" not in text
    return text


def test_nothing_listening() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # kept, without listening: nobody else can listen there meanwhile
        assert "cannot be reached" in _problem(f"http://ana:{PASSWORD}@127.0.0.1:{port}")


def test_a_wrong_password() -> None:
    with _server() as port:
        assert "refuses the user or password" in _problem(f"http://ana:{PASSWORD}@127.0.0.1:{port}")


def test_tls_is_checked_and_the_authority_can_be_named(certificate: tuple[Path, Path]) -> None:
    with _server(_tls_server_context(certificate)) as port:
        dsn = f"https://ana:{PASSWORD}@127.0.0.1:{port}"
        assert "not trusted" in _problem(dsn)
        # Past the handshake the server's own answer comes through.
        assert "refuses the user or password" in _problem(dsn, ca_file=certificate[0])
        assert "refuses the user or password" in _problem(dsn, verify=False)


def test_a_client_certificate_is_presented(certificate: tuple[Path, Path]) -> None:
    with _server(_tls_server_context(certificate, wants_client=True)) as port:
        dsn = f"https://ana:{PASSWORD}@127.0.0.1:{port}"
        presented = {"client_cert_file": certificate[0], "client_key_file": certificate[1]}
        assert "refuses the user or password" in _problem(dsn, ca_file=certificate[0], **presented)
        assert "client certificate" in _problem(dsn, ca_file=certificate[0])


def test_tls_to_a_plain_port() -> None:
    with _server() as port:
        assert "does not speak TLS" in _problem(f"https://ana:{PASSWORD}@127.0.0.1:{port}")


def test_a_certificate_file_that_is_not_there(tmp_path: Path) -> None:
    assert "clickhouse.ca_file" in _problem("https://127.0.0.1:1", ca_file=tmp_path / "no.pem")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot be created" in _problem(f"chdb://{blocked}/clickhouse")


def test_a_folder_another_process_uses(tmp_path: Path) -> None:
    dsn = f"chdb://{tmp_path}/clickhouse"
    hold = (
        "import sys; from pydantic import SecretStr; from schemas.settings import ClickHouseSettings; "
        "from streams.clickhouse import connect; "
        "c = connect(ClickHouseSettings(dsn=SecretStr(sys.argv[1]))); print('open', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, dsn],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "open"
        # A third process asks: this one may hold the engine of the other tests' folder.
        ask = hold.replace("c = connect", "connect").replace("print('open', flush=True); sys.stdin.read()", "pass")
        asked = subprocess.run(
            [sys.executable, "-c", ask, dsn], capture_output=True, text=True, cwd=root, timeout=180, check=False
        )
        assert asked.returncode != 0
        assert "another process uses it" in asked.stderr.strip().splitlines()[-1]
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
