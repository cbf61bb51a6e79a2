"""POST /v1/tenants/{t}/events/{event_id}/void: takes a counted event out again, once, and keeps who did it and why.

The progress is read first and the claim second, as in billing.events: a claim at or below it has been counted. Then one
transaction, on condition that the claim is still the one that was read and has not been voided (metering.voids). So
whatever is asked again, by whomever and after whatever was lost, the first void stands, and its record is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import stamina
from flask import request
from werkzeug.exceptions import HTTPException

from billing.answers import answer, freshness_members
from billing.event_status import Status, status_of_claim, status_of_unclaimed
from billing.events import checked_claim_key, event_members, identity_members
from billing.freshness import freshness
from billing.parameters import query_parameters
from metering.errors import StoreUnavailableError
from metering.events import RECEIPT_PREFIX, parse_name
from metering.places import place_of_owner, place_of_receipt
from metering.voids import Void, VoidOutcome, VoidRequest, counted_rows, parse_void
from metering.web import RETRY_AFTER_S, ProblemError, problem
from metering.web_keys import key_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from flask import Flask, Response

    from billing.freshness import Freshness
    from metering.ports import BillingStore, ClaimedEvent, ShardProgress

VOID_ENDPOINT = "void_event"
BODY_BYTES_MAX = 8 * 1024
"""Two texts of 256 characters, escaped throughout, are 6 KiB."""
ATTEMPTS_MAX = 6
RETRY_S = 4.0
"""A row that is written all the time refuses a transaction now and then; the client has its own patience as well."""


class EventPendingError(ProblemError):
    """The event is claimed and not counted yet: the one conflict that passes by itself."""

    def __init__(self, known: Freshness) -> None:
        detail = "the event is not counted yet, so there is nothing to take out; ask again"
        super().__init__(409, "event_pending", detail, **freshness_members(known))


def add_voiding(app: Flask, store: BillingStore, stream: str, now: Callable[[], datetime]) -> None:
    """Add the void of single events to `app`; stream: whose progress decides. After add_events: it needs its converter.

    With API keys, VOID_ENDPOINT is what needs Scope.VOID.
    """

    @app.errorhandler(EventPendingError)
    def _pending(error: EventPendingError) -> Response:
        response = problem(409, "event_pending", error.detail, **error.members)
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return response

    @app.post("/v1/tenants/<tenant_id>/events/<event_id:event_id>/void", endpoint=VOID_ENDPOINT)
    def void_event(tenant_id: str, event_id: str) -> Response:
        source = query_parameters(request.args, "source").get("source")
        tenant_id = parse_name(tenant_id, "tenant_id")
        if event_id.startswith(RECEIPT_PREFIX):
            _refuse_receipt(event_id, source)
        key = checked_claim_key(tenant_id, event_id, source)
        void_request = parse_void(_body())
        shards = store.progress(stream)  # before the claim: see the top
        known = freshness(shards, now=now())
        asked = _Asked(tenant_id, key, void_request, shards, known)
        for attempt in stamina.retry_context(
            on=StoreUnavailableError,
            attempts=ATTEMPTS_MAX,
            timeout=RETRY_S,
            wait_initial=0.05,
            wait_max=1.0,
            wait_jitter=0.1,
        ):
            with attempt:
                _void(store, asked, now)
        return answer({**identity_members(tenant_id, event_id, source), **event_members(store, key, shards)}, known)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A void that was asked for. key: of the event's claim. shards: the progress that was read; known: as_of, by it."""

    tenant_id: str
    key: str
    request: VoidRequest
    shards: Sequence[ShardProgress]
    known: Freshness


def _void(store: BillingStore, asked: _Asked, now: Callable[[], datetime]) -> None:
    """Return when the event is voided, by this request or an earlier one; raises ProblemError when it can't be."""
    claimed = store.claimed(asked.key)
    if claimed is None:
        _refuse_unclaimed(store, asked)
    void = _void_of(claimed, asked)
    if void is None:
        return
    owner = place_of_owner(void.owner)
    if owner is not None and store.rejection(owner.place) is not None:
        raise _not_voidable("it was rejected, too: a rule was changed while it came, and it may not be in", asked.known)
    match store.void(void, now=now()):
        case VoidOutcome.NOT_HELD:
            raise _not_voidable("its total or its window does not hold it; `metering audit` tells more", asked.known)
        case VoidOutcome.KEEPS_READING:
            raise _not_voidable("its rows keep a maximum or a latest value: nobody knows what was second", asked.known)
        case VoidOutcome.CLAIM_CHANGED:  # another request was quicker, or the claim has expired: look again
            raise StoreUnavailableError(f"the claim {asked.key!r} changed while it was voided")


def _void_of(claimed: ClaimedEvent, asked: _Asked) -> Void | None:
    """Return what takes a claimed event out, None when that is done; raises ProblemError when it can't be."""
    owner, content = place_of_owner(claimed.owner), claimed.content
    if owner is None or content is None:
        raise _not_voidable("the ledger's row of this id holds no claim that can be read", asked.known)
    match status_of_claim(claimed, owner, asked.shards):
        case Status.VOIDED:
            return None
        case Status.PENDING:
            raise EventPendingError(asked.known)
    if claimed.window is None:
        raise _not_voidable("its claim, of an older version, does not say in which window it was counted", asked.known)
    rows = counted_rows(asked.tenant_id, content, claimed.window)
    return Void(asked.key, claimed.owner, rows, content.value, asked.request, key_fingerprint())


def _refuse_unclaimed(store: BillingStore, asked: _Asked) -> NoReturn:
    members = freshness_members(asked.known)
    if status_of_unclaimed(store.rejections(asked.key, limit=1)) is Status.REJECTED:
        detail = "the event was rejected and never counted, so there is nothing to take out"
        raise ProblemError(409, "event_rejected", detail, **members)
    raise ProblemError(404, "event_not_found", "no event with this id has been counted", **members)


def _refuse_receipt(event_id: str, source: str | None) -> NoReturn:
    if source is not None:
        raise ProblemError(400, "unknown_parameter", "a receipt has no source", parameter="source")
    place_of_receipt(event_id)
    detail = "an event that was sent without an event_id shares one claim with others of its batch, and can't be voided"
    raise ProblemError(409, "not_voidable", detail)


def _not_voidable(why: str, known: Freshness) -> ProblemError:
    return ProblemError(409, "not_voidable", why, **freshness_members(known))


def _body() -> bytes:
    """Return the request's body. Raises ProblemError: 415 for what is no JSON, 413, 400 when it breaks off."""
    if request.mimetype != "application/json":
        raise ProblemError(415, "unsupported_media_type", "Content-Type must be application/json")
    request.max_content_length = BODY_BYTES_MAX
    try:
        return request.get_data(cache=False)
    except HTTPException:
        raise
    except Exception as error:
        # A torn connection, a malformed chunk: WSGI (PEP 3333) names no errors for them, each server has its own.
        raise ProblemError(400, "bad_request", "the body could not be read to its end") from error
