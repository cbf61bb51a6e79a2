"""An alert as JSON: what billing answers of it, and what is posted to the webhook."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from billing.answers import exact_number, time_member
from billing.ranges import local_text
from metering.alerts import Alert, Crossing, Kind, Message, Notice
from metering.local_time import zone_named

TYPE_PREFIX = "usage.alert."


def alert_members(alert: Alert) -> dict[str, Any]:
    """Return an alert as it is listed."""
    return {
        **_crossing_members(alert.crossing),
        **_state_members(alert.resolved_at),
        **_notice_members(alert.crossed, ""),
        **_notice_members(alert.resolved, "resolution_"),
    }


def alert_message(crossing: Crossing, kind: Kind, *, now: datetime) -> Message:
    """Return the message of an alert that is crossed or resolved at `now` (aware UTC), due at once.

    Its body is made once: what is posted again is the same to the byte, and so the receiver may compare.
    """
    data = {
        "tenant_id": crossing.watched.tenant_id,
        **_crossing_members(crossing),
        **_state_members(now if kind is Kind.RESOLVED else None),
    }
    body = msgspec.json.encode({"type": f"{TYPE_PREFIX}{kind}", "timestamp": time_member(now), "data": data})
    return Message(crossing.message_id(kind), kind, crossing.key, body, made_at=now, due_at=now)


def _crossing_members(crossing: Crossing) -> dict[str, Any]:
    watched = crossing.watched
    zone = zone_named(watched.timezone)
    return {
        "id": crossing.alert_id,
        "name": watched.name,
        "metric": watched.metric,
        "period": watched.period.value,
        "start": local_text(watched.start, zone),
        "end": local_text(watched.end, zone),
        "timezone": watched.timezone,
        "threshold": exact_number(crossing.threshold),
        "usage": exact_number(crossing.usage),
        "crossed_at": time_member(crossing.crossed_at),
        "crossed_as_of": time_member(crossing.as_of),
    }


def _state_members(resolved_at: datetime | None) -> dict[str, Any]:
    return {"state": "open" if resolved_at is None else "resolved", "resolved_at": time_member(resolved_at)}


def _notice_members(notice: Notice | None, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}delivery": None if notice is None else notice.delivery.value,
        f"{prefix}posted_at": None if notice is None else time_member(notice.posted_at),
    }
