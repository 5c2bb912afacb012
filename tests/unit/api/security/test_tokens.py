"""Tokens: what is taken, and the attacks that are not."""

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from api.security.principal import How, Refused, Role
from api.security.tokens import (
    ACCESS,
    ACCESS_LIFE_S,
    AUDIENCE,
    ISSUER,
    LEEWAY_S,
    REFRESH,
    REFRESH_LIFE_S,
    OwnTokens,
    ProviderRules,
    key_id_of,
    verify_provider_token,
)
from schemas.errors import ConfigurationError
from schemas.ids import TenantId

NOW_S = 1_800_000_000
ACME = TenantId("acme")


def pem_of(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.fixture(scope="module")
def own_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2_048)


@pytest.fixture
def tokens(own_key: ec.EllipticCurvePrivateKey) -> OwnTokens:
    return OwnTokens(pem_of(own_key))


def claims(**changes: Any) -> dict[str, Any]:
    base = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "iat": NOW_S,
        "exp": NOW_S + 60,
        "jti": "x1",
        "tenant": "acme",
        "role": "admin",
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def test_what_is_issued_is_taken_until_it_expires(tokens: OwnTokens) -> None:
    issued = tokens.issue("ann", ACME, Role.OPERATOR, NOW_S, stamp="s1")
    principal, family = tokens.verify(issued.access, NOW_S + 1)
    assert (principal.subject, principal.tenant, principal.role, principal.how) == (
        "ann",
        ACME,
        Role.OPERATOR,
        How.LOGIN,
    )
    assert family == issued.refresh_id
    refresh = tokens.verify_refresh(issued.refresh, NOW_S + 1)
    assert (refresh.account, refresh.tenant, refresh.id, refresh.family) == ("ann", ACME, issued.refresh_id, family)
    assert (refresh.stamp, principal.stamp, refresh.expires_s) == ("s1", "s1", NOW_S + REFRESH_LIFE_S)
    tokens.verify(issued.access, NOW_S + ACCESS_LIFE_S + LEEWAY_S - 1)
    with pytest.raises(Refused, match="expired"):
        tokens.verify(issued.access, NOW_S + ACCESS_LIFE_S + LEEWAY_S)
    with pytest.raises(Refused, match="not valid yet"):
        tokens.verify(issued.access, NOW_S - LEEWAY_S - 1)


def test_each_kind_of_token_is_taken_for_itself_alone(tokens: OwnTokens) -> None:
    issued = tokens.issue("ann", ACME, Role.ADMIN, NOW_S)
    with pytest.raises(Refused):
        tokens.verify(issued.refresh, NOW_S)
    with pytest.raises(Refused):
        tokens.verify_refresh(issued.access, NOW_S)


def unsigned(header: dict[str, Any], payload: dict[str, Any]) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part(header)}.{part(payload)}."


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
def test_a_token_without_signature_is_refused(tokens: OwnTokens, alg: str) -> None:
    with pytest.raises(Refused):
        tokens.verify(unsigned({"alg": alg, "typ": ACCESS}, claims()), NOW_S)


def test_the_public_key_is_no_shared_secret(tokens: OwnTokens, own_key: ec.EllipticCurvePrivateKey) -> None:
    public = own_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": ACCESS}).encode()).rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
    mac = base64.urlsafe_b64encode(hmac.new(public, header + b"." + body, hashlib.sha256).digest()).rstrip(b"=")
    with pytest.raises(Refused):
        tokens.verify((header + b"." + body + b"." + mac).decode(), NOW_S)


def test_another_key_of_the_same_kind_is_refused(tokens: OwnTokens, rsa_key: rsa.RSAPrivateKey) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    for key, alg in ((other, "ES256"), (rsa_key, "RS256")):
        with pytest.raises(Refused):
            tokens.verify(jwt.encode(claims(), key, alg, headers={"typ": ACCESS}), NOW_S)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another-api"},
        {"aud": ...},
        {"iss": "https://evil.example"},
        {"iss": ...},
        {"exp": ...},
        {"iat": ...},
        {"jti": ...},
        {"sub": ...},
        {"exp": NOW_S - 3_600},
        {"nbf": NOW_S + 3_600},
        {"iat": NOW_S + 3_600},
        {"exp": "later"},
        {"exp": True},
        {"exp": float("inf")},
        {"tenant": ...},
        {"tenant": ""},
        {"tenant": "a" * 300},
        {"tenant": ["acme"]},
        {"tenant": "a\nb"},
        {"role": ...},
        {"role": "root"},
        {"role": 3},
    ],
)
def test_claims_that_are_wrong_are_refused(
    tokens: OwnTokens, own_key: ec.EllipticCurvePrivateKey, changes: dict[str, Any]
) -> None:
    tokens.verify(jwt.encode(claims(), own_key, "ES256", headers={"typ": ACCESS}), NOW_S)
    with pytest.raises(Refused):
        tokens.verify(jwt.encode(claims(**changes), own_key, "ES256", headers={"typ": ACCESS}), NOW_S)


@pytest.mark.parametrize("typ", ["JWT", REFRESH, "", "at+jwt2"])
def test_other_types_are_refused(tokens: OwnTokens, own_key: ec.EllipticCurvePrivateKey, typ: str) -> None:
    with pytest.raises(Refused):
        tokens.verify(jwt.encode(claims(), own_key, "ES256", headers={"typ": typ}), NOW_S)


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "..", "x" * 10_000, "é.é.é", "e30.e30.e30"])
def test_what_is_no_token_is_refused(tokens: OwnTokens, token: str) -> None:
    for use in (
        lambda: tokens.verify(token, NOW_S),
        lambda: tokens.verify_refresh(token, NOW_S),
        lambda: key_id_of(token),
    ):
        with pytest.raises(Refused):
            use()


def test_keys_of_other_curves_are_configuration_errors(rsa_key: rsa.RSAPrivateKey) -> None:
    for pem in (b"", b"nonsense", pem_of(rsa_key), pem_of(ec.generate_private_key(ec.SECP384R1()))):
        with pytest.raises(ConfigurationError, match="signing key"):
            OwnTokens(pem)


RULES = ProviderRules(
    issuer="https://idp.example",
    audience="drift",
    algorithms=("RS256",),
    tenant_claim="org.id",
    role_claim="https://drift.example/roles",
    roles={"sec-admins": "admin", "sec-readers": "viewer"},
)


def provider_claims(**changes: Any) -> dict[str, Any]:
    base = {
        "iss": "https://idp.example",
        "aud": "drift",
        "sub": "u-7",
        "iat": NOW_S,
        "exp": NOW_S + 60,
        "org": {"id": "acme"},
        "https://drift.example/roles": ["sec-readers", "others"],
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def signed(key: rsa.RSAPrivateKey, alg: str = "RS256", **changes: Any) -> str:
    return jwt.encode(provider_claims(**changes), key, alg, headers={"typ": ACCESS, "kid": "k1"})


def test_a_providers_claims_are_mapped(rsa_key: rsa.RSAPrivateKey) -> None:
    public = rsa_key.public_key()
    principal = verify_provider_token(signed(rsa_key), public, RULES, NOW_S)
    assert (principal.subject, principal.tenant, principal.role) == ("u-7", ACME, Role.VIEWER)
    changes: dict[str, Any] = {"https://drift.example/roles": ["sec-readers", "sec-admins"]}
    both = signed(rsa_key, **changes)
    assert verify_provider_token(both, public, RULES, NOW_S).role is Role.ADMIN
    assert key_id_of(signed(rsa_key)) == "k1"


@pytest.mark.parametrize(
    "changes",
    [
        {"https://drift.example/roles": ["admin"]},
        {"https://drift.example/roles": [{"x": 1}, 3]},
        {"https://drift.example/roles": ...},
        {"org": {"id": 7}},
        {"org": "acme"},
        {"aud": ["other"]},
        {"iss": "https://idp.example/"},
        {"exp": NOW_S - 60},
    ],
)
def test_a_providers_token_that_says_too_little_is_refused(rsa_key: rsa.RSAPrivateKey, changes: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        verify_provider_token(signed(rsa_key, **changes), rsa_key.public_key(), RULES, NOW_S)


def test_a_provider_may_sign_with_its_own_algorithms_alone(rsa_key: rsa.RSAPrivateKey) -> None:
    with pytest.raises(Refused):
        verify_provider_token(signed(rsa_key, "RS512"), rsa_key.public_key(), RULES, NOW_S)
    for bad in ((), ("HS256",), ("RS256", "none")):
        with pytest.raises(ConfigurationError):
            ProviderRules(issuer="i", audience="a", algorithms=bad)
    with pytest.raises(ConfigurationError):
        ProviderRules(issuer="i", audience="a", roles={"x": "root"})


def test_a_provider_speaks_for_its_tenants_alone(rsa_key: rsa.RSAPrivateKey) -> None:
    token, public = signed(rsa_key), rsa_key.public_key()
    assert verify_provider_token(token, public, replace(RULES, tenants=("acme", "x")), NOW_S).tenant == ACME
    with pytest.raises(Refused, match="may not speak"):
        verify_provider_token(token, public, replace(RULES, tenants=("globex",)), NOW_S)


def test_no_provider_names_the_token_of_another(rsa_key: rsa.RSAPrivateKey) -> None:
    public = rsa_key.public_key()
    mine = verify_provider_token(signed(rsa_key, jti="family:x"), public, RULES, NOW_S).credential_id
    again = verify_provider_token(signed(rsa_key, jti="family:x"), public, RULES, NOW_S).credential_id
    other = verify_provider_token(signed(rsa_key, jti="y"), public, RULES, NOW_S).credential_id
    assert mine == again != other and "family" not in mine and ":" not in mine


def test_short_keys_are_refused() -> None:
    weak = rsa.generate_private_key(65_537, 1_024)
    with pytest.raises(Refused):
        verify_provider_token(signed(weak), weak.public_key(), RULES, NOW_S)
