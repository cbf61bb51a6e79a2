"""The directory of tenants: GET /v1/tenants, and what a key may see of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import request

from billing.answers import answer
from billing.parameters import cursor_after, page_limit, page_start, query_parameters
from metering.ports import TenantPage
from metering.web_keys import key_tenants

if TYPE_CHECKING:
    from flask import Flask, Response

    from billing.as_of import AsOf
    from metering.ports import BillingReader


def add_tenants(app: Flask, reader: BillingReader, as_of: AsOf) -> None:
    """Add the list of tenants to `app`."""

    @app.get("/v1/tenants")
    def tenants() -> Response:
        parameters = query_parameters(request.args, "limit", "cursor")
        limit, after = page_limit(parameters), page_start(parameters)
        known = as_of.read({})  # before the read below: see billing.app
        found = visible_tenants(reader, limit=limit, after=after)
        return answer(
            {
                "tenants": [{"tenant_id": tenant_id} for tenant_id in found.tenant_ids],
                "next_cursor": None if found.cursor is None else cursor_after(found.cursor),
            },
            known,
        )


def visible_tenants(reader: BillingReader, *, limit: int, after: str | None) -> TenantPage:
    """Return a page of the directory as UsageReader.tenants does, without tenants that this request's key may not see.

    Those of a key are looked up one by one: reading the directory to its end would cost what all the others have in it.
    A tenant that has a total is in the directory, since the consumer enters it there first.
    """
    own = key_tenants()
    if own is None:
        return reader.tenants(limit=limit, after=after)
    found: list[str] = []
    for tenant_id in sorted(own):  # by code point: the same order as DynamoDB's, of UTF-8 bytes
        if len(found) > limit:
            break
        if (after is None or tenant_id > after) and reader.totals(tenant_id):
            found.append(tenant_id)
    return TenantPage(tuple(found[:limit]), found[limit - 1] if len(found) > limit else None)
