"""Certificates for TLS tests, made on the spot: an authority, a broker, a client, and strangers nobody should trust."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT_KEY_PASSWORD = "key-password"


@dataclass(frozen=True)
class _Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: str = "") -> bytes:
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            encryption = serialization.BestAvailableEncryption(password.encode())
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def write_certificates(directory: Path) -> None:
    """Write ``ca.pem``, ``broker.pem`` (key, then chain, as Kafka's PEM key store wants it), ``client.pem`` with
    ``client.key`` and ``client-encrypted.key``, ``stranger-ca.pem``, ``stranger.pem`` with ``stranger.key``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    authority, stranger_authority = _authority("drift test authority"), _authority("some other authority")
    broker = _issued("broker", authority, ExtendedKeyUsageOID.SERVER_AUTH)
    client = _issued("drift-client", authority, ExtendedKeyUsageOID.CLIENT_AUTH)
    stranger = _issued("stranger", stranger_authority, ExtendedKeyUsageOID.CLIENT_AUTH)
    for name, content in {
        "ca.pem": authority.pem,
        "broker.pem": broker.key_pem() + broker.pem + authority.pem,
        "client.pem": client.pem,
        "client.key": client.key_pem(),
        "client-encrypted.key": client.key_pem(CLIENT_KEY_PASSWORD),
        "stranger-ca.pem": stranger_authority.pem,
        "stranger.pem": stranger.pem,
        "stranger.key": stranger.key_pem(),
    }.items():
        (directory / name).write_bytes(content)


def _authority(name: str) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(subject, subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _issued(name: str, authority: _Pair, usage: x509.ObjectIdentifier) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        _builder(subject, authority.certificate.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),  # strict clients want it
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
