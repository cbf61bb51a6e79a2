"""API keys at the edge of both web services: who asks, and whether they may.

A key comes as `Authorization: Bearer KEY` (RFC 6750) or, where something on the way needs Authorization for itself, as
`X-Api-Key: KEY`; never in a URL, which ends up in logs. Neither a key nor its header is ever logged.

A browser can send neither by itself, so to read, it may also come as the password of HTTP Basic (RFC 7617), with any
user. Only to read: a browser sends that along with whatever another site makes it ask for.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Mapping

from flask import Flask, Response, g, request
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from metering.api_keys import ALL_TENANTS, KeyFile, Scope
from metering.settings import RateLimit, Settings
from metering.web import ProblemError, prefers_html, problem

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/static/<path:filename>"})
"""Load balancers and Prometheus carry no key, and a client reads the description before it has one."""

_READING = frozenset({"GET", "HEAD"})
FINGERPRINT_DIGITS = 12
"""By which a record names a key: enough to find its line in the file, and nothing to ask with."""


def add_api_keys(
    app: Flask, settings: Settings, *, scope: Scope, endpoint_scopes: Mapping[str, Scope] | None = None
) -> None:
    """Let only those in who hold a key of API_KEYS_FILE; without it, change nothing.

    scope: what a key must have for every path but OPEN_PATHS; endpoint_scopes: for these endpoints another one.
    A path's `<tenant_id>` must be a tenant of the key, for that scope: no view has to think of it.
    Answers 401 `unauthorized`, 403 `forbidden_scope` and `forbidden_tenant`, and 429 `rate_limited`.
    Raises InvalidSettingError for a file that can't be used.
    """
    if settings.api_keys_file is None:
        return
    keys = KeyFile(settings.api_keys_file)
    rate = KeyRate(settings.api_key_rate_limit) if settings.api_key_rate_limit else None
    scopes = endpoint_scopes or {}

    @app.before_request
    def _check_key() -> Response | None:
        ring = keys.ring()
        g.key_tenants = frozenset()  # until the key is known
        if request.url_rule is not None and request.url_rule.rule in OPEN_PATHS:
            return None
        key = _presented_key()
        grant = ring.grant_of(key) if key else None
        if grant is None:
            return _unauthorized(missing=not key)
        retry_after_s = rate.retry_after_s(grant.key_id) if rate else None
        if retry_after_s is not None:
            return _rate_limited(retry_after_s)
        if request.routing_exception is not None:
            return None  # 404 or 405, whatever the key may do
        needed = scopes.get(request.endpoint or "", scope)
        if needed not in grant.tenants:
            raise ProblemError(403, "forbidden_scope", f"this API key lacks the scope {needed}", scope=needed)
        g.key_tenants = grant.tenants[needed]
        g.key_id = grant.key_id
        if request.view_args and "tenant_id" in request.view_args:
            require_tenant(request.view_args["tenant_id"])
        return None


def key_tenants() -> frozenset[str] | None:
    """Return the tenants for which this request's key may do what is asked; None: for all, or no keys are set."""
    tenants: frozenset[str] | None = g.get("key_tenants")
    return None if tenants is None or ALL_TENANTS in tenants else tenants


def key_fingerprint() -> str | None:
    """Return the first 12 hexadecimal digits of the SHA-256 of this request's key, None when no keys are set."""
    key_id: str | None = g.get("key_id")
    return None if key_id is None else key_id[:FINGERPRINT_DIGITS]


def tenant_allowed(tenant_id: str) -> bool:
    """Return whether this request's key may do what is asked for `tenant_id`; True when no keys are set."""
    tenants = key_tenants()
    return tenants is None or tenant_id in tenants


def require_tenant(tenant_id: str) -> None:
    """Raise ProblemError 403 `forbidden_tenant` unless tenant_allowed."""
    if not tenant_allowed(tenant_id):
        raise ProblemError(403, "forbidden_tenant", "this API key may not do this for this tenant", field="tenant_id")


def require_all_tenants() -> None:
    """Raise ProblemError 403 `forbidden_tenant` unless this request's key may do what is asked for all tenants."""
    if key_tenants() is not None:
        raise ProblemError(403, "forbidden_tenant", "this needs an API key for all tenants", field="tenant_id")


class KeyRate:
    """Counts the requests of each key, in this process alone. Thread-safe.

    Two counters for each key, the older one weighted by how much of it the last `seconds` still cover. A fixed window
    would let twice the rate through at once where two windows meet, and with a clock that is set back it would shut a
    key out for that long; a moving window would hold a time for every request.
    """

    def __init__(self, rate: RateLimit) -> None:
        self._rate = RateLimitItemPerSecond(rate.requests, rate.seconds)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        # The storage is not as thread-safe as it means to be: two first requests of a key lose a count, and two that
        # start its clean-up at once raise RuntimeError.
        self._lock = threading.Lock()

    def retry_after_s(self, key_id: str) -> int | None:
        """Count a request; None when it may go on, else whole seconds, 1 or more, until one may."""
        with self._lock:
            if self._limiter.hit(self._rate, key_id):
                return None
            frees_at = self._limiter.get_window_stats(self._rate, key_id).reset_time
        return max(0, int(frees_at - time.time())) + 1


def _presented_key() -> bytes:
    """Return the key as the bytes that were sent, empty when there is none.

    Two headers of one name come joined by a comma (RFC 9110, section 5.3), and so as a wrong key.
    """
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic" and request.method in _READING and "X-Api-Key" not in request.headers:
        return _password(credentials)
    key = credentials if scheme.lower() == "bearer" else request.headers.get("X-Api-Key", "")
    return key.strip(" \t").encode("latin-1")  # as PEP 3333 decodes it


def _password(credentials: str) -> bytes:
    try:
        return base64.b64decode(credentials.strip(" \t"), validate=True).partition(b":")[2]
    except ValueError:  # binascii.Error is one, and so is text that is not ASCII
        return b""


def _unauthorized(*, missing: bool) -> Response:
    detail = "an API key is needed: Authorization: Bearer KEY" if missing else "there is no such API key"
    response = problem(401, "unauthorized", detail)
    # A browser asks for a password when Basic is offered, and does not know Bearer.
    basic = request.method in _READING and prefers_html()
    response.headers["WWW-Authenticate"] = 'Basic realm="billing", charset="UTF-8"' if basic else "Bearer"
    return response


def _rate_limited(retry_after_s: int) -> Response:
    response = problem(429, "rate_limited", "this API key has sent too many requests; send this one again later")
    response.headers["Retry-After"] = str(retry_after_s)
    return response
