"""AlertStore of the in-memory twins, see metering.memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from metering.alerts import (
    ALERT_PREFIX,
    Alert,
    AlertPage,
    Crossing,
    Delivery,
    Kind,
    Message,
    Notice,
    WatchedPeriod,
    open_sort_key,
)
from metering.events import time_text
from metering.rows import RowKey, tenant_pk

_AFTER_ALL = "~"


class MemoryAlerts:
    """AlertStore on dictionaries: by key, by when the period ends, and by when a message is due."""

    alert_rows: dict[RowKey, Alert]
    open_alerts: dict[str, Crossing]
    outbox: dict[str, Message]

    def alerts(self, tenant_id: str, *, limit: int, after: str | None) -> AlertPage:
        pk = tenant_pk(tenant_id)
        keys = [key for key in self.alert_rows if key.pk == pk and (after is None or key.sk < ALERT_PREFIX + after)]
        keys.sort(key=lambda key: key.sk.encode(), reverse=True)  # DynamoDB sorts by UTF-8 bytes
        found = tuple(self.alert_rows[key] for key in keys[:limit])
        return AlertPage(found, keys[limit - 1].sk.removeprefix(ALERT_PREFIX) if len(keys) > limit else None)

    def recorded(self, watched: WatchedPeriod) -> frozenset[Decimal]:
        pk, prefix = tenant_pk(watched.tenant_id), watched.key_prefix
        return frozenset(
            row.crossing.threshold for key, row in self.alert_rows.items() if key.pk == pk and key.sk.startswith(prefix)
        )

    def record(self, crossing: Crossing, message: Message | None) -> bool:
        if crossing.key in self.alert_rows:
            return False
        self.alert_rows[crossing.key] = Alert(crossing, None, self._put(message), None)
        self.open_alerts[open_sort_key(crossing)] = crossing
        return True

    def open_until(self, end: datetime, *, limit: int) -> list[Crossing]:
        until = time_text(end) + _AFTER_ALL
        return [self.open_alerts[key] for key in sorted(self.open_alerts) if key < until][:limit]

    def resolve(self, crossing: Crossing, message: Message | None, *, now: datetime) -> bool:
        if self.open_alerts.pop(open_sort_key(crossing), None) is None:
            return False
        row = self.alert_rows[crossing.key]
        self.alert_rows[crossing.key] = replace(row, resolved_at=now, resolved=self._put(message))
        return True

    def due_messages(self, now: datetime, *, limit: int) -> list[Message]:
        until = time_text(now) + _AFTER_ALL
        return [self.outbox[key] for key in sorted(self.outbox) if key < until][:limit]

    def move(self, message: Message, later: Message) -> bool:
        if self.outbox.pop(message.sort_key, None) is None:
            return False
        self.outbox[later.sort_key] = later
        return True

    def posted(self, message: Message, *, now: datetime) -> None:
        self._note(message, Notice(Delivery.POSTED, now))
        self.outbox.pop(message.sort_key, None)

    def give_up(self, message: Message) -> None:
        row = self.alert_rows[message.alert]
        before = row.crossed if message.kind is Kind.CROSSED else row.resolved
        if before == Notice(Delivery.PENDING):
            self._note(message, Notice(Delivery.FAILED))
        self.outbox.pop(message.sort_key, None)

    def _put(self, message: Message | None) -> Notice | None:
        if message is None:
            return None
        self.outbox[message.sort_key] = message
        return Notice(Delivery.PENDING)

    def _note(self, message: Message, notice: Notice) -> None:
        row = self.alert_rows[message.alert]
        after = replace(row, crossed=notice) if message.kind is Kind.CROSSED else replace(row, resolved=notice)
        self.alert_rows[message.alert] = after
