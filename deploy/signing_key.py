"""The key that signs the API's tokens: read from where the settings say, or made once in a folder of one's own."""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from schemas.errors import ConfigurationError
from schemas.settings import AuthSettings

NAME = "signing-key.pem"
HOW_TO_MAKE_ONE = "openssl ecparam -name prime256v1 -genkey -noout -out signing-key.pem && chmod 600 signing-key.pem"


def read_signing_key(settings: AuthSettings) -> bytes:
    """Return the configured key in PEM.

    Raises:
        ConfigurationError: there is none, or it cannot be read.
    """
    path = settings.signing_key_file
    if path is None:
        raise ConfigurationError(
            f"api.auth.signing_key_file names no key, and there is no default: make one ({HOW_TO_MAKE_ONE}) "
            "and give it to all API processes"
        )
    try:
        mode = path.stat().st_mode
        if mode & 0o007:
            raise ConfigurationError(f"the signing key {path} may be read by everybody: chmod 600 {path}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the signing key {path} cannot be read ({error.strerror}): check api.auth.signing_key_file"
        ) from None


def new_key_pem() -> bytes:
    """Return a new P-256 key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def own_signing_key(folder: Path) -> bytes:
    """Return the key in a folder, made at the first call; only its owner may read it.

    Raises:
        ConfigurationError: it cannot be read or written.
    """
    path = folder / NAME
    try:
        if not path.exists():
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(new_key_pem())
            new.replace(path)
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the signing key {path} cannot be read or made ({error.strerror})") from None
