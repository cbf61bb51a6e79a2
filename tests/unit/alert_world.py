"""Usage in memory, a clock, a receiver of messages, and runners over them: for tests of alerts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from billing.alerting import AlertRunner, Retries
from billing.alerts import Alerts
from billing.alerts_file import ALERTS_FILE
from billing.webhook import Outcome
from metering.alerts import Alert, Message
from metering.memory import MemoryTables
from metering.meters import NO_METERS, Meters
from tests.builders import NOW, STREAM, count, event, shard

DAILY = "alerts: [{name: high, metric: api_calls, period: day, thresholds: [10, 20]}]"


@dataclass
class Receiver:
    """Poster that keeps what is posted. outcomes: of the next posts, in order; then all are taken."""

    outcomes: list[Outcome] = field(default_factory=list)
    posts: list[Message] = field(default_factory=list)
    seconds_each: float = 0.0
    clock_s: float = 0.0

    def post(self, message: Message, *, now: datetime) -> Outcome:
        self.posts.append(message)
        self.clock_s += self.seconds_each
        return self.outcomes.pop(0) if self.outcomes else Outcome.POSTED

    def ids(self) -> list[str]:
        return [message.message_id for message in self.posts]


class AlertWorld:
    """now: the clock of all. as_of follows it unless it is held."""

    def __init__(self, text: str = DAILY, *, meters: Meters = NO_METERS) -> None:
        self.tables = MemoryTables()
        self.alerts: Alerts = ALERTS_FILE.parse(text.encode(), name="f")
        self.meters = meters
        self.receiver = Receiver()
        self.now = NOW
        self._counted = 0
        self.complete(NOW)

    def use(self, value: str, *, at: datetime | None = None, **fields: Any) -> None:
        """Count an event that happened at `at`, now unless said."""
        happened = (at or self.now).isoformat()
        tenant_id = fields.get("tenant_id", "tenant-123")
        self.tables.register_tenant(tenant_id, now=self.now)
        counted = replace(event(value=value, **fields), occurred_at=datetime.fromisoformat(happened))
        count(self.tables, counted, first=self._counted, meters=self.meters)
        self._counted += 1

    def complete(self, until: datetime | None) -> None:
        """Say that all is in that the stream held at `until`; None: it is not known."""
        self.tables.shards.clear()
        self.tables.open_shard(shard(), complete_until=until, now=self.now)

    def go_to(self, moment: datetime) -> None:
        self.now = moment
        self.complete(moment)

    def runner(self, *, kind: type[AlertRunner] = AlertRunner, **changed: Any) -> AlertRunner:
        parts: dict[str, Any] = {
            "reader": self.tables,
            "store": self.tables,
            "alerts": self.alerts,
            "meters": self.meters,
            "stream": STREAM,
            "poster": self.receiver,
            "now": lambda: self.now,
            "clock": lambda: self.receiver.clock_s,
            "uniform": lambda: 1.0,
            "retries": Retries(),
        }
        return kind(**(parts | changed))

    def found(self, tenant_id: str = "tenant-123") -> list[Alert]:
        return list(self.tables.alerts(tenant_id, limit=1000, after=None).alerts)

    def thresholds(self, tenant_id: str = "tenant-123") -> list[Decimal]:
        return sorted(alert.crossing.threshold for alert in self.found(tenant_id))


DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
