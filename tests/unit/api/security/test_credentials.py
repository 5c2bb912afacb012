"""Keys, passwords, the directory of who exists, and lock-out."""

import msgspec
import pytest
from argon2 import PasswordHasher

from api.security.api_keys import PREFIX, key_id, new_key, verify_key
from api.security.directory import FAMILY, Account, Directory, Revocation
from api.security.lockout import FORGET_AFTER_S, FREE_TRIES, MAX_WAIT_S, REMEMBERED, Lockout
from api.security.passwords import MAX_BYTES, Passwords, complaint_about, one_time_password
from api.security.principal import How, Principal, Refused, Role
from schemas.access_records import ACCOUNT, API_KEY, REVOCATION
from schemas.ids import TenantId

NOW_S = 1_800_000_000
ACME, GLOBEX = TenantId("acme"), TenantId("globex")


def test_a_key_is_shown_once_and_verified_by_its_hash() -> None:
    key, record = new_key(ACME, "siem", Role.VIEWER, NOW_S)
    prefix, named, secret = key.split("_", 2)  # the secret may hold more of them
    assert (prefix, named, len(secret)) == (PREFIX, record.id, 43)
    assert secret not in msgspec.json.encode(record).decode()
    principal = verify_key(key, record, NOW_S)
    assert (principal.tenant, principal.role, principal.how) == (ACME, Role.VIEWER, How.API_KEY)
    assert key_id(key) == record.id


def test_other_keys_are_refused() -> None:
    key, record = new_key(ACME, "siem", Role.VIEWER, NOW_S, expires_s=NOW_S + 10)
    other, other_record = new_key(ACME, "siem", Role.VIEWER, NOW_S)
    verify_key(key, record, NOW_S + 9)
    for credential, of in ((key, None), (key, other_record), (other, record), (key[:-1], record), (key + "x", record)):
        with pytest.raises(Refused):
            verify_key(credential, of, NOW_S)
    with pytest.raises(Refused, match="expired"):
        verify_key(key, record, NOW_S + 10)
    for text in ("", PREFIX, "sgd_../../x", "sgd_" + "0" * 16 + "_" + "é" * 43):
        with pytest.raises(Refused):
            key_id(text)


@pytest.mark.parametrize(
    ("password", "is_fine"),
    [
        ("correct horse battery", True),
        ("x" * 11, False),
        ("aaaaaaaaaaaaaaaa", False),
        ("ann-is-the-best-of-all", False),
        ("pässwörter sind läng", True),
        ("xy" * MAX_BYTES, False),
    ],
)
def test_passwords_are_judged_by_length_and_substance(password: str, is_fine: bool) -> None:
    assert (complaint_about(password, "ann") is None) is is_fine


def test_a_one_time_password_is_one_that_would_be_taken() -> None:
    found = {one_time_password() for _ in range(100)}
    assert len(found) == 100 and all(complaint_about(one, "admin") is None for one in found)


async def test_a_wrong_password_and_nobodys_are_both_wrong() -> None:
    quick = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    stored = await quick.hash("correct horse battery")
    assert "correct" not in stored and stored.startswith("$argon2id$")
    assert await quick.verify(stored, "correct horse battery")
    for against, password in ((stored, "wrong"), (None, "correct horse battery"), ("junk", "x"), (stored, "x" * 5_000)):
        assert not await quick.verify(against, password)
    assert Passwords().must_be_hashed_anew(stored) and not quick.must_be_hashed_anew(stored)


def account(**changes: object) -> Account:
    return msgspec.structs.replace(Account("ann", "acme", int(Role.OPERATOR), "$argon2id$x", NOW_S), **changes)


def stored(directory: Directory, kind: str, record_id: str, value: msgspec.Struct | None, tenant: str = "acme") -> None:
    directory.apply(tenant, kind, record_id, None if value is None else msgspec.json.encode(value))


def principal(role: Role = Role.ADMIN, how: How = How.LOGIN, subject: str = "ann") -> Principal:
    return Principal(subject, ACME, role, how, "token-1", NOW_S + 60, "f1")


def test_a_login_has_the_role_its_account_has_now() -> None:
    directory = Directory()
    with pytest.raises(Refused):
        directory.check(principal())
    stored(directory, ACCOUNT, "ann", account())
    assert directory.check(principal()).role is Role.OPERATOR
    assert directory.check(principal(Role.VIEWER)).role is Role.VIEWER
    for change in ({"is_disabled": True}, {"stamp": "another"}):
        stored(directory, ACCOUNT, "ann", account(**change))
        with pytest.raises(Refused):
            directory.check(principal())
    stored(directory, ACCOUNT, "ann", None)
    with pytest.raises(Refused):
        directory.check(principal())


def test_revocations_end_a_token_or_a_whole_login_until_they_would_have_ended() -> None:
    directory = Directory()
    stored(directory, ACCOUNT, "ann", account())
    for record_id in ("token-1", FAMILY + "f1"):
        stored(directory, REVOCATION, record_id, Revocation(NOW_S + 60))
        with pytest.raises(Refused, match="revoked"):
            directory.check(principal())
        assert directory.forget_expired(NOW_S + 59) == []
        assert directory.forget_expired(NOW_S + 60) == [("acme", record_id)]
        directory.check(principal())
    stored(directory, REVOCATION, "token-1", Revocation(NOW_S + 60), tenant="globex")
    directory.check(principal())  # another tenant's


def test_nobody_writes_into_another_tenant() -> None:
    directory = Directory()
    stored(directory, ACCOUNT, "ann", account(), tenant="globex")
    stored(directory, ACCOUNT, "eve", account())
    _, record = new_key(ACME, "siem", Role.VIEWER, NOW_S)
    stored(directory, API_KEY, record.id, record, tenant="globex")
    assert not directory.accounts and not directory.keys and directory.unreadable == 3
    stored(directory, API_KEY, record.id, record)
    stored(directory, API_KEY, record.id, None, tenant="globex")
    assert record.id in directory.keys
    stored(directory, API_KEY, record.id, msgspec.structs.replace(record, tenant="globex"), tenant="globex")
    assert directory.keys[record.id].tenant == "acme"


@pytest.mark.parametrize("value", [b"{", b"[]", b'{"name": "ann"}', b"\xff", b'{"until_s": "x"}'])
def test_what_cannot_be_read_lets_nobody_in(value: bytes) -> None:
    directory = Directory()
    for kind in (ACCOUNT, API_KEY, REVOCATION):
        directory.apply("acme", kind, "ann", value)
    assert not directory.accounts and not directory.keys and not directory.revoked and directory.unreadable == 3
    directory.apply("acme", "inventory", "x", value)
    assert directory.unreadable == 3


def test_each_failure_beyond_the_free_ones_doubles_the_wait() -> None:
    lockout = Lockout()
    waits = []
    for _ in range(FREE_TRIES + 12):
        lockout.note_failure("ann", NOW_S)
        waits.append(lockout.wait_s("ann", NOW_S))
    assert waits[: FREE_TRIES + 3] == [0.0] * FREE_TRIES + [1, 2, 4]
    assert waits[-1] == MAX_WAIT_S and waits == sorted(waits)
    assert lockout.wait_s("bob", NOW_S) == 0
    assert lockout.wait_s("ann", NOW_S + MAX_WAIT_S) == 0
    lockout.note_success("ann")
    assert lockout.wait_s("ann", NOW_S) == 0


def test_failures_are_forgotten_in_time_and_bounded_in_number() -> None:
    lockout = Lockout()
    for _ in range(FREE_TRIES + 1):
        lockout.note_failure("ann", NOW_S)
    lockout.note_failure("ann", NOW_S + FORGET_AFTER_S + 1)
    assert lockout.wait_s("ann", NOW_S + FORGET_AFTER_S + 1) == 0
    for number in range(REMEMBERED + 10):
        lockout.note_failure(f"n{number}", NOW_S)
    assert len(lockout._failures) == REMEMBERED


def test_a_try_that_was_right_takes_back_its_own_failure_alone() -> None:
    lockout = Lockout()
    for _ in range(FREE_TRIES + 3):
        lockout.note_failure("192.0.2.1", NOW_S)
    waits = lockout.wait_s("192.0.2.1", NOW_S)
    lockout.note_failure("192.0.2.1", NOW_S)
    lockout.take_back("192.0.2.1")
    assert lockout.wait_s("192.0.2.1", NOW_S) >= waits  # the others' failures still count
    lockout.note_failure("192.0.2.2", NOW_S)
    lockout.take_back("192.0.2.2")
    lockout.take_back("192.0.2.2")
    assert "192.0.2.2" not in lockout._failures


def test_an_account_record_that_cannot_be_read_keeps_nobody_in() -> None:
    directory = Directory()
    stored(directory, ACCOUNT, "ann", account())
    directory.apply("acme", ACCOUNT, "ann", b"{")
    assert not directory.accounts
