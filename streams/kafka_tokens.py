"""OAuth 2.0 client-credentials tokens for SASL/OAUTHBEARER. Does I/O: asks the issuer, in a thread."""

import asyncio
import json
import logging
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import AuthenticationFailedError, KafkaConnectionError

from schemas.settings import KafkaSettings

_TOKEN_TIMEOUT_S = 10.0
_TOKEN_MAX_BYTES = 1 << 20
_TOKEN_LIFETIME_S = 60.0
"""How long a token is kept whose issuer does not say how long it lives."""

log = logging.getLogger(__name__)


class ClientCredentialsTokens(AbstractTokenProvider):  # type: ignore[misc]
    """OAuth 2.0 client-credentials tokens (RFC 6749, section 4.4) for SASL/OAUTHBEARER.

    One object serves connections in several threads and event loops (Faust's consumer has its own): a token is fetched
    in a thread, kept until a fifth of its life is left, and never logged.

    Args:
        context: how the issuer's certificate is checked; by default as the system does.
        monotonic: seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        context: ssl.SSLContext | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._token = ""
        self._fresh_until_s = float("-inf")
        context = context or ssl.create_default_context()
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))
        if (settings.oauth_token_url or "").startswith("http:"):
            log.warning("kafka.oauth_token_url is not https: the client secret travels in the clear")

    async def token(self) -> str:
        """Return a token that is still good.

        Raises:
            KafkaConnectionError: the issuer cannot be reached or is in trouble; the client tries again.
            AuthenticationFailedError: the issuer refuses us, or answers without a token.
        """
        return await asyncio.to_thread(self._current)

    def _current(self) -> str:
        with self._lock:
            if self._monotonic() >= self._fresh_until_s:
                self._token, lifetime_s = self._fetch()
                self._fresh_until_s = self._monotonic() + 0.8 * lifetime_s
            return self._token

    def _fetch(self) -> tuple[str, float]:
        url = self._settings.oauth_token_url or ""
        try:
            with self._opener.open(self._request(url), timeout=_TOKEN_TIMEOUT_S) as response:
                body = response.read(_TOKEN_MAX_BYTES)
        except urllib.error.HTTPError as error:
            text = f"kafka.oauth_token_url {url} refuses the client: HTTP {error.code}{_oauth_error(error)}"
            if error.code >= 500 or error.code == 429:
                raise KafkaConnectionError(text) from None
            raise AuthenticationFailedError(text) from None
        except (OSError, urllib.error.URLError) as error:
            reason = getattr(error, "reason", error)
            raise KafkaConnectionError(f"kafka.oauth_token_url {url} cannot be reached: {reason}") from None
        try:
            answer = json.loads(body)
            token, lifetime_s = answer["access_token"], float(answer.get("expires_in") or _TOKEN_LIFETIME_S)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise AuthenticationFailedError(f"kafka.oauth_token_url {url} answered without an access_token") from None
        if not isinstance(token, str) or not re.fullmatch(r"[A-Za-z0-9\-._~+/]+=*", token):
            raise AuthenticationFailedError(
                f"kafka.oauth_token_url {url} answered with a token that is no bearer token"
            )
        return token, lifetime_s

    def _request(self, url: str) -> urllib.request.Request:
        secret = self._settings.oauth_client_secret
        quoted = [
            urllib.parse.quote_plus(part)
            for part in (self._settings.oauth_client_id or "", secret.get_secret_value() if secret else "")
        ]
        form = {"grant_type": "client_credentials"}
        if self._settings.oauth_scope:
            form["scope"] = self._settings.oauth_scope
        headers = {
            "Authorization": "Basic " + b64encode(":".join(quoted).encode()).decode(),
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        return urllib.request.Request(url, urllib.parse.urlencode(form).encode(), headers, method="POST")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow nothing: a redirected request would hand the client's secret to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _oauth_error(error: urllib.error.HTTPError) -> str:
    """Return the ``error`` code of RFC 6749, section 5.2; nothing else of the answer is safe to show."""
    try:
        code = json.loads(error.read(_TOKEN_MAX_BYTES)).get("error", "")
    except (ValueError, OSError, AttributeError):
        return ""
    return f" ({code})" if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code) else ""
