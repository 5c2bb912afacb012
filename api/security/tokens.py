"""JSON Web Tokens: those of our own login, and those of an external identity provider. No network here.

Rules of RFC 8725: the algorithms are fixed by configuration and never taken from the token, required claims are
required, issuer and audience are compared exactly, and the kind of token (``typ``, RFC 9068) too. Time is an argument.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from api.security.principal import How, Principal, Refused, Role
from schemas.errors import ConfigurationError
from schemas.flow import MAX_NAME_BYTES
from schemas.ids import TenantId

ISSUER = "secureguard-drift"
AUDIENCE = "secureguard-drift-api"
ACCESS, REFRESH = "at+jwt", "rt+jwt"
ALGORITHM = "ES256"
ACCESS_LIFE_S = 900
REFRESH_LIFE_S = 12 * 3_600
LEEWAY_S = 30
MAX_TOKEN_BYTES = 8_192
ASYMMETRIC = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
"""What a provider may sign with. A shared secret (HS256) would let us sign as the provider, and confuse key kinds."""

_REQUIRED = ["exp", "iat", "iss", "aud", "sub", "jti"]
_UNTIMED = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
_decoder = jwt.PyJWT(options={"enforce_minimum_key_length": True})


def _check_time(claims: Mapping[str, Any], now_s: int) -> None:
    for name in ("exp", "iat", "nbf"):
        value = claims.get(name, 0 if name == "nbf" else None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1 << 53:
            raise Refused(f"claim {name} is no time")
    if now_s >= claims["exp"] + LEEWAY_S:
        raise Refused("expired")
    if max(claims["iat"], claims.get("nbf", 0)) > now_s + LEEWAY_S:
        raise Refused("not valid yet")


def _decoded(token: str, key: Any, algorithms: Sequence[str], typ: Sequence[str], **expected: Any) -> dict[str, Any]:
    if len(token) > MAX_TOKEN_BYTES:
        raise Refused("token too long")
    try:
        whole = _decoder.decode_complete(token, key, algorithms=list(algorithms), **expected)
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise Refused(f"{type(error).__name__}") from None
    if str(whole["header"].get("typ", "")).lower().removeprefix("application/") not in typ:
        raise Refused("another kind of token")
    claims: dict[str, Any] = whole["payload"]
    return claims


def _tenant_of(value: object) -> TenantId:
    if not isinstance(value, str) or not 0 < len(value.encode()) <= MAX_NAME_BYTES or not value.isprintable():
        raise Refused("no tenant in the token")
    if ":" in value:  # its records in `drift-controls` would be another tenant's
        raise Refused("a tenant with a colon in its name")
    return TenantId(value)


@dataclass(frozen=True, slots=True)
class Issued:
    """An access token and the refresh token that goes with it."""

    access: str
    refresh: str
    access_expires_s: int
    refresh_id: str
    refresh_expires_s: int


class Refresh(NamedTuple):
    """What a refresh token says. ``id`` is its own, ``family`` that of the login it comes from."""

    account: str
    tenant: TenantId
    id: str
    family: str
    expires_s: int
    stamp: str


class OwnTokens:
    """Issues and verifies the tokens of our own login.

    Args:
        private_key_pem: a P-256 key; all API processes of an installation have the same.

    Raises:
        ConfigurationError: it is none.
    """

    def __init__(self, private_key_pem: bytes) -> None:
        try:
            key = load_pem_private_key(private_key_pem, None)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                "the signing key of the API cannot be read: give an unencrypted P-256 key in PEM "
                "(openssl ecparam -name prime256v1 -genkey -noout)"
            ) from error
        if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
            raise ConfigurationError("the signing key of the API must be one of the curve P-256 (prime256v1)")
        self._private, self._public = key, key.public_key()

    def issue(
        self, account: str, tenant: TenantId, role: Role, now_s: int, family: str = "", stamp: str = ""
    ) -> Issued:
        """Return tokens for one who has logged in.

        Args:
            family: of the login that is refreshed; a new login starts one. stamp: of the account as it is.
        """
        refresh_id = secrets.token_hex(16)
        common = {"iss": ISSUER, "aud": AUDIENCE, "sub": account, "iat": now_s, "tenant": tenant, "stamp": stamp}
        access = {**common, "exp": now_s + ACCESS_LIFE_S, "jti": secrets.token_hex(16), "role": role.name.lower()}
        access["family"] = family or refresh_id
        refresh = {**common, "exp": now_s + REFRESH_LIFE_S, "jti": refresh_id, "family": family or refresh_id}
        return Issued(
            access=jwt.encode(access, self._private, ALGORITHM, headers={"typ": ACCESS}),
            refresh=jwt.encode(refresh, self._private, ALGORITHM, headers={"typ": REFRESH}),
            access_expires_s=now_s + ACCESS_LIFE_S,
            refresh_id=refresh_id,
            refresh_expires_s=now_s + REFRESH_LIFE_S,
        )

    def verify(self, token: str, now_s: int) -> tuple[Principal, str]:
        """Return whose access token this is, and the family of its login.

        Raises:
            Refused: it is no valid access token of ours.
        """
        claims = self._claims(token, ACCESS, now_s)
        try:
            role = Role.of(str(claims.get("role")))
        except KeyError:
            raise Refused("no role in the token") from None
        principal = Principal(
            str(claims["sub"]),
            _tenant_of(claims.get("tenant")),
            role,
            How.LOGIN,
            str(claims["jti"]),
            int(claims["exp"]),
            str(claims.get("family", "")),
            str(claims.get("stamp", "")),
        )
        return principal, principal.family

    def verify_refresh(self, token: str, now_s: int) -> "Refresh":
        """Return what a refresh token says.

        Raises:
            Refused: it is none.
        """
        claims = self._claims(token, REFRESH, now_s)
        tenant = _tenant_of(claims.get("tenant"))
        family, stamp = str(claims.get("family", "")), str(claims.get("stamp", ""))
        return Refresh(str(claims["sub"]), tenant, str(claims["jti"]), family, int(claims["exp"]), stamp)

    def _claims(self, token: str, typ: str, now_s: int) -> dict[str, Any]:
        expected = {"audience": AUDIENCE, "issuer": ISSUER, "options": {"require": _REQUIRED, **_UNTIMED}}
        claims = _decoded(token, self._public, (ALGORITHM,), (typ,), **expected)
        _check_time(claims, now_s)
        return claims


@dataclass(frozen=True, slots=True)
class ProviderRules:
    """What tokens of an external identity provider must look like.

    Attributes:
        tenant_claim, role_claim: where tenant and role stand; a path with dots reaches into objects.
        roles: the provider's values to ours; of several the one that may most.
        tenants: for which it may speak; ``*`` is any.
        typ: kinds of token accepted; many providers say ``JWT`` of access tokens, and of ID tokens too.
    """

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256",)
    tenant_claim: str = "tenant"
    role_claim: str = "roles"
    roles: Mapping[str, str] = field(default_factory=lambda: {role.name.lower(): role.name.lower() for role in Role})
    typ: tuple[str, ...] = (ACCESS,)
    tenants: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        unknown = set(self.algorithms) - ASYMMETRIC
        if unknown or not self.algorithms:
            raise ConfigurationError(
                f"algorithms {sorted(unknown)} of the identity provider are not allowed; "
                f"use {', '.join(sorted(ASYMMETRIC))}"
            )
        known = {role.name.lower() for role in Role}
        if set(self.roles.values()) - known:
            raise ConfigurationError(f"roles of the identity provider must map to {', '.join(sorted(known))}")


def verify_provider_token(token: str, key: Any, rules: ProviderRules, now_s: int) -> Principal:
    """Return whose token of the provider this is.

    Args:
        key: the provider's public key that the token's ``kid`` names, fetched from the configured address alone.

    Raises:
        Refused: the token is not valid, or says no tenant or role that is known.
    """
    required = [name for name in _REQUIRED if name != "jti"]
    claims = _decoded(
        token,
        key,
        rules.algorithms,
        tuple(one.lower() for one in rules.typ),
        audience=rules.audience,
        issuer=rules.issuer,
        options={"require": required, **_UNTIMED},
    )
    _check_time(claims, now_s)
    named = _claim(claims, rules.role_claim)
    values = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    roles = [Role.of(rules.roles[value]) for value in values if isinstance(value, str) and value in rules.roles]
    if not roles:
        raise Refused("no role in the token")
    tenant = _tenant_of(_claim(claims, rules.tenant_claim))
    if "*" not in rules.tenants and tenant not in rules.tenants:
        raise Refused("the provider may not speak for this tenant")
    # Hashed with its issuer, so that no provider can name a token of ours or of another one.
    named_by = json.dumps([rules.issuer, claims.get("jti") or [claims["sub"], claims["iat"]]])
    credential = f"provider-{hashlib.sha256(named_by.encode()).hexdigest()[:32]}"
    return Principal(str(claims["sub"]), tenant, max(roles), How.PROVIDER, credential, int(claims["exp"]))


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    if path in claims:  # names of claims may be URLs, which have dots
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def key_id_of(token: str) -> str:
    """Return the ``kid`` in a token's header, the one thing believed before it is verified: which key to verify by.

    Raises:
        Refused: it is no token, or names no key.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise Refused("token too long")
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError) as error:
        raise Refused(type(error).__name__) from None
    if not isinstance(kid, str) or not 0 < len(kid) <= 256:
        raise Refused("no key named")
    return kid


def issuer_of(token: str) -> str:
    """Return the issuer a token claims, unverified: it says by which rules to verify, which then compare it.

    Raises:
        Refused: it is no token.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise Refused("token too long")
    try:
        return str(jwt.decode(token, options={"verify_signature": False}).get("iss"))
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise Refused(type(error).__name__) from None
