"""Log-in, refresh, log-out, accounts, keys and first start, through HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.security.lockout import FREE_TRIES
from api.security.principal import Role
from api.security.tokens import ACCESS_LIFE_S, LEEWAY_S, REFRESH_LIFE_S
from schemas.settings import ApiSettings, AuthSettings, LimitSettings, Settings
from tests.access import PASSWORD, Doors, MemoryControlLog

NEW = "a wholly different phrase"
GENEROUS = LimitSettings(logins_per_minute=10_000, principal_per_minute=10_000, tenant_per_minute=10_000)


def settings_of(**changes: Any) -> Settings:
    return Settings(api=ApiSettings(**{"limits": GENEROUS, "auth": AuthSettings(admin_tenant="acme")} | changes))


async def serve(doors: Doors, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, doors.access)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        yield client


@pytest.fixture
def doors() -> Doors:
    doors = Doors(settings_of().api)
    doors.account("acme", "ann", Role.ADMIN)
    doors.account("acme", "bob", Role.VIEWER)
    doors.account("globex", "eve", Role.ADMIN)
    return doors


@pytest.fixture
async def client(doors: Doors) -> AsyncIterator[httpx.AsyncClient]:
    async for one in serve(doors, settings_of()):
        yield one


async def login(
    client: httpx.AsyncClient, name: str = "ann", tenant: str = "acme", password: str = PASSWORD, **more: str
) -> httpx.Response:
    body = {"tenant": tenant, "account": name, "password": password, **more}
    return await client.post("/v1/sessions", json=body)


async def tokens(client: httpx.AsyncClient, name: str = "ann", tenant: str = "acme") -> dict[str, Any]:
    answer = await login(client, name, tenant)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def bearer(session: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {session['access_token']}"}


async def me(client: httpx.AsyncClient, session: dict[str, Any]) -> int:
    return (await client.get("/v1/me", headers=bearer(session))).status_code


async def refreshed(client: httpx.AsyncClient, session: dict[str, Any]) -> httpx.Response:
    return await client.post("/v1/sessions/refresh", json={"refresh_token": session["refresh_token"]})


def is_problem(answer: httpx.Response, status: int, name: str) -> bool:
    assert answer.headers["content-type"] == "application/problem+json"
    return (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, name)


async def test_one_logs_in_and_is_who_one_is(client: httpx.AsyncClient, doors: Doors) -> None:
    session = await tokens(client)
    answer = await client.get("/v1/me", headers=bearer(session))
    assert answer.json() == {
        "tenant": "acme",
        "subject": "ann",
        "role": "admin",
        "credential": "login",
        "expires_s": doors.access.now_s() + ACCESS_LIFE_S,
        "must_change_password": False,
    }
    doors.clock.pass_s(ACCESS_LIFE_S + LEEWAY_S)
    assert await me(client, session) == 401


async def test_every_refused_login_looks_alike(client: httpx.AsyncClient, doors: Doors) -> None:
    doors.account("acme", "out", is_disabled=True)
    bodies = []
    for name, tenant, password in (
        ("ann", "acme", "wrong"),
        ("nobody", "acme", PASSWORD),
        ("ann", "globex", PASSWORD),
        ("ann", "nowhere", PASSWORD),
        ("out", "acme", PASSWORD),
    ):
        answer = await login(client, name, tenant, password)
        assert is_problem(answer, 401, "login-refused")
        bodies.append({key: value for key, value in answer.json().items() if key != "request_id"})
    assert all(body == bodies[0] for body in bodies)
    tenants = [one.tenant for one in doors.audit.records]
    assert tenants == ["acme", "acme", "globex", "acme"]  # nothing of a tenant that nobody can log in to


async def test_guessing_is_slowed_down_by_account_and_by_address(client: httpx.AsyncClient, doors: Doors) -> None:
    for _ in range(FREE_TRIES):
        assert is_problem(await login(client, password="wrong"), 401, "login-refused")
    assert (await login(client, password="wrong")).status_code == 401
    answer = await login(client)  # the right one too: who guesses must not learn it
    assert is_problem(answer, 429, "too-many-requests")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await login(client, "bob")).status_code == 429  # the same address
    doors.clock.pass_s(60)
    assert (await login(client)).status_code == 200


async def test_refresh_rotates_and_a_stolen_token_ends_the_login(client: httpx.AsyncClient, doors: Doors) -> None:
    first = await tokens(client)
    doors.clock.pass_s(ACCESS_LIFE_S)
    second = (await refreshed(client, first)).json()
    third = (await refreshed(client, second)).json()
    assert await me(client, third) == 200
    assert (await refreshed(client, first)).status_code == 401  # used before: somebody has stolen it
    assert await me(client, third) == 401 and (await refreshed(client, third)).status_code == 401
    assert ("login:ann", "session.refresh", "refused") in doors.audit.told()
    assert await me(client, await tokens(client)) == 200  # another login is not concerned


async def test_a_refresh_token_is_no_access_token_and_ends(client: httpx.AsyncClient, doors: Doors) -> None:
    session = await tokens(client)
    headers = {"Authorization": f"Bearer {session['refresh_token']}"}
    assert (await client.get("/v1/me", headers=headers)).status_code == 401
    answer = await client.post("/v1/sessions/refresh", json={"refresh_token": session["access_token"]})
    assert answer.status_code == 401
    doors.clock.pass_s(REFRESH_LIFE_S + LEEWAY_S)
    assert (await refreshed(client, session)).status_code == 401


async def test_logout_ends_all_tokens_of_the_login_in_every_process(client: httpx.AsyncClient, doors: Doors) -> None:
    other = Doors(settings_of().api, doors.log)
    async for beside in serve(other, settings_of()):
        session, another = await tokens(client), await tokens(client)
        assert await me(beside, session) == 200
        assert (await client.delete("/v1/sessions", headers=bearer(session))).status_code == 204
        for process in (client, beside):
            assert await me(process, session) == 401
            assert (await refreshed(process, session)).status_code == 401
            assert await me(process, another) == 200


async def test_a_new_password_ends_all_sessions_but_the_one_it_answers(client: httpx.AsyncClient, doors: Doors) -> None:
    session, other = await tokens(client), await tokens(client)
    body = {"password": PASSWORD, "new_password": NEW}
    for bad in ("short", PASSWORD, "annannannannann"):
        answer = await client.put("/v1/me/password", json=body | {"new_password": bad}, headers=bearer(session))
        assert is_problem(answer, 422, "invalid-parameter") and bad not in answer.text
    assert (
        await client.put("/v1/me/password", json=body | {"password": "wrong"}, headers=bearer(session))
    ).status_code == 401
    answer = await client.put("/v1/me/password", json=body, headers=bearer(session))
    assert answer.status_code == 200
    assert [await me(client, one) for one in (session, other, answer.json())] == [401, 401, 200]
    assert (await refreshed(client, other)).status_code == 401
    assert (await login(client)).status_code == 401 and (await login(client, password=NEW)).status_code == 200


async def test_the_first_start_makes_one_administrator_who_must_choose_a_password() -> None:
    log = MemoryControlLog()
    doors = Doors(settings_of().api, log)
    async for client in serve(doors, settings_of()):
        ((tenant, name, password),) = doors.shown
        assert (tenant, name) == ("acme", "admin") and len(password) == 24
        assert all(password.encode() not in (value or b"") for *_, value in log.records)
        session = (await login(client, "admin", password=password)).json()
        assert session["must_change_password"]
        assert is_problem(await client.get("/v1/services", headers=bearer(session)), 403, "password-must-change")
        assert is_problem(await client.get("/v1/accounts", headers=bearer(session)), 403, "password-must-change")
        answer = await login(client, "admin", password=password, new_password=NEW)
        assert answer.status_code == 200 and not answer.json()["must_change_password"]
        assert (await client.get("/v1/accounts", headers=bearer(answer.json()))).status_code == 200
        assert (await login(client, "admin", password=password)).status_code == 401
    again = Doors(settings_of().api, log)
    async for _ in serve(again, settings_of()):
        assert again.shown == []
    assert password not in str(doors.audit.records)


@pytest.mark.parametrize("password", ["", "admin", "password", "drift", "changeme", "secureguard"])
async def test_no_default_password_works(password: str) -> None:
    async for client in serve(Doors(settings_of().api), settings_of()):
        assert (await login(client, "admin", password=password)).status_code in (401, 422)


async def test_administrators_manage_the_accounts_of_their_tenant(client: httpx.AsyncClient, doors: Doors) -> None:
    headers = bearer(await tokens(client))
    made = await client.post("/v1/accounts", json={"account": "cy", "role": "operator"}, headers=headers)
    assert made.status_code == 201
    password = made.json()["one_time_password"]
    session = (await login(client, "cy", password=password, new_password=NEW)).json()
    assert (await client.get("/v1/me", headers=bearer(session))).json()["role"] == "operator"
    listed = (await client.get("/v1/accounts", headers=headers)).json()["accounts"]
    assert [one["account"] for one in listed] == ["ann", "bob", "cy"]
    assert "argon2" not in str(listed) and password not in str(listed)

    changed = await client.patch("/v1/accounts/cy", json={"role": "viewer"}, headers=headers)
    assert changed.json()["role"] == "viewer" and await me(client, session) == 401
    await client.patch("/v1/accounts/cy", json={"is_disabled": True}, headers=headers)
    assert (await login(client, "cy", password=NEW)).status_code == 401
    await client.patch("/v1/accounts/cy", json={"is_disabled": False}, headers=headers)
    reset = (await client.post("/v1/accounts/cy/password-reset", headers=headers)).json()
    assert (await login(client, "cy", password=NEW)).status_code == 401
    session = (await login(client, "cy", password=reset["one_time_password"], new_password=NEW)).json()
    assert (await client.delete("/v1/accounts/cy", headers=headers)).status_code == 204
    assert await me(client, session) == 401
    # One of the same name is somebody else: old tokens stay ended.
    await client.post("/v1/accounts", json={"account": "cy"}, headers=headers)
    assert await me(client, session) == 401

    assert is_problem(await client.delete("/v1/accounts/eve", headers=headers), 404, "not-found")
    assert is_problem(await client.delete("/v1/accounts/ann", headers=headers), 409, "last-admin")
    demoted = await client.patch("/v1/accounts/ann", json={"role": "viewer"}, headers=headers)
    assert is_problem(demoted, 409, "last-admin")
    assert is_problem(
        await client.post("/v1/accounts", json={"account": "bob"}, headers=headers), 409, "account-exists"
    )
    told = [
        (action, target) for action, target in ((r.action, r.target) for r in doors.audit.records) if target == "cy"
    ]
    assert [action for action, _ in told] == [
        "account.create",
        "password.change",
        "account.change",
        "account.change",
        "account.change",
        "account.reset-password",
        "password.change",
        "account.delete",
        "account.create",
    ]


async def test_an_api_key_reads_its_tenant_until_it_is_revoked_or_expires(
    client: httpx.AsyncClient, doors: Doors
) -> None:
    headers = bearer(await tokens(client))
    made = (await client.post("/v1/api-keys", json={"name": "siem", "days": 1}, headers=headers)).json()
    key = made["key"]
    for sent in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
        answer = (await client.get("/v1/me", headers=sent)).json()
        assert (answer["tenant"], answer["role"], answer["credential"]) == ("acme", "viewer", "api-key")
        assert (await client.get("/v1/api-keys", headers=sent)).status_code == 403
        assert (await client.delete("/v1/sessions", headers=sent)).status_code == 409
        body = {"password": PASSWORD, "new_password": NEW}
        assert (await client.put("/v1/me/password", json=body, headers=sent)).status_code == 409
    listed = await client.get("/v1/api-keys", headers=headers)
    assert [one["id"] for one in listed.json()["keys"]] == [made["id"]]
    _, _, secret = key.split("_", 2)  # which may hold more of them
    assert len(secret) == 43 and secret not in listed.text
    both = {"X-API-Key": key, "Authorization": f"Bearer {key}"}
    assert (await client.get("/v1/me", headers=both)).status_code == 401

    eve = bearer(await tokens(client, "eve", "globex"))
    assert is_problem(await client.delete(f"/v1/api-keys/{made['id']}", headers=eve), 404, "not-found")
    assert (await client.get("/v1/api-keys", headers=eve)).json() == {"keys": []}
    doors.clock.pass_s(86_400)
    assert (await client.get("/v1/me", headers={"X-API-Key": key})).status_code == 401
    headers = bearer(await tokens(client))
    lasting = (await client.post("/v1/api-keys", json={"name": "ci", "role": "operator"}, headers=headers)).json()
    assert (await client.get("/v1/me", headers={"X-API-Key": lasting["key"]})).status_code == 200
    assert (await client.delete(f"/v1/api-keys/{lasting['id']}", headers=headers)).status_code == 204
    assert (await client.get("/v1/me", headers={"X-API-Key": lasting["key"]})).status_code == 401
    admin_key = await client.post("/v1/api-keys", json={"name": "x", "role": "admin"}, headers=headers)
    assert admin_key.status_code == 422


async def test_while_records_cannot_be_written_nothing_is_changed_and_all_else_goes_on(
    client: httpx.AsyncClient, doors: Doors
) -> None:
    session = await tokens(client)
    doors.log.is_away = True
    headers = bearer(session)
    for answer in (
        await client.post("/v1/accounts", json={"account": "cy"}, headers=headers),
        await client.post("/v1/api-keys", json={"name": "siem"}, headers=headers),
        await client.delete("/v1/accounts/bob", headers=headers),
        await client.delete("/v1/sessions", headers=headers),
        await refreshed(client, session),
    ):
        assert is_problem(answer, 503, "accounts-unavailable") and answer.headers["retry-after"]
    assert await me(client, session) == 200 and (await login(client)).status_code == 200
    doors.log.is_away = False
    assert (await refreshed(client, session)).status_code == 200


async def test_until_the_records_are_read_nobody_is_let_in(doors: Doors) -> None:
    async for client in serve(doors, settings_of()):
        session = await tokens(client)
        doors.log.is_caught_up = False
        assert is_problem(await client.get("/v1/me", headers=bearer(session)), 503, "accounts-unavailable")
        assert is_problem(await login(client), 503, "accounts-unavailable")
        assert is_problem(await refreshed(client, session), 503, "accounts-unavailable")
        assert is_problem(await client.get("/readyz"), 503, "store-unavailable")
        assert (await client.get("/healthz")).status_code == 200
        doors.log.is_caught_up = True
