"""Tokens of external identity providers: their public keys, fetched from the configured addresses alone."""

import asyncio
import logging
from time import monotonic
from typing import Any

from jwt import PyJWKClient
from jwt.exceptions import PyJWKClientConnectionError, PyJWTError

from api.problems import RETRY_AFTER_S, Problem
from api.security.principal import Principal, Refused
from api.security.tokens import ProviderRules, issuer_of, key_id_of, verify_provider_token
from schemas.errors import ConfigurationError
from schemas.settings import ProviderSettings

log = logging.getLogger("api")

KEYS_KEPT_S = 300
COOL_DOWN_S = 30
"""An unknown key id asks for the keys anew at most so often: tokens are made up faster than keys change."""
AWAY_S = 10
FETCH_TIMEOUT_S = 3


class _Keys:
    """Public keys of one provider, by their id."""

    def __init__(self, url: str) -> None:
        self._client = PyJWKClient(
            url, lifespan=KEYS_KEPT_S, timeout=FETCH_TIMEOUT_S, cooldown_duration=COOL_DOWN_S, cache_jwk_set=True
        )
        self._known: dict[str, tuple[Any, float]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._away_until_s = 0.0

    async def key(self, kid: str) -> Any:
        """Return a key.

        Raises:
            Refused: the provider has none of that id. Problem: 503, it cannot be asked now.
        """
        known = self._known.get(kid)
        if known is not None and monotonic() < known[1]:
            return known[0]
        async with self._one_at_a_time:  # tokens that are made up must not take all threads
            if monotonic() < self._away_until_s:
                raise _away()
            try:
                found = await asyncio.to_thread(self._client.get_signing_key, kid)
            except PyJWKClientConnectionError as error:
                self._away_until_s = monotonic() + AWAY_S
                log.warning("keys of the identity provider cannot be fetched: %s", type(error.__cause__).__name__)
                raise _away() from None
            except (PyJWTError, ValueError) as error:
                raise Refused(f"no key of that id: {type(error).__name__}") from None
        self._known = {kid: (found.key, monotonic() + KEYS_KEPT_S)} | {
            name: kept for name, kept in self._known.items() if monotonic() < kept[1] and name != kid
        }
        return found.key


def _away() -> Problem:
    return Problem(
        503,
        "identity-provider-unavailable",
        "The identity provider cannot be asked now",
        "Its keys cannot be fetched; tokens of the API's own log-in and API keys are taken.",
        headers={"Retry-After": RETRY_AFTER_S},
    )


class Providers:
    """All configured providers.

    Raises:
        ConfigurationError: two have one issuer, or rules that are not safe.
    """

    def __init__(self, configured: tuple[ProviderSettings, ...]) -> None:
        self._by_issuer: dict[str, tuple[ProviderRules, _Keys]] = {}
        for one in configured:
            if one.issuer in self._by_issuer:
                raise ConfigurationError(f"api.auth.providers: {one.issuer!r} is configured twice")
            rules = ProviderRules(**one.model_dump(exclude={"jwks_url"}))
            self._by_issuer[one.issuer] = rules, _Keys(one.jwks_url)

    async def verify(self, token: str, now_s: int) -> Principal:
        """Return whose token this is.

        Raises:
            Refused: it is no valid token of a configured provider. Problem: 503, its keys cannot be fetched now.
        """
        found = self._by_issuer.get(issuer_of(token))
        if found is None:
            raise Refused("unknown issuer")
        rules, keys = found
        return verify_provider_token(token, await keys.key(key_id_of(token)), rules, now_s)
