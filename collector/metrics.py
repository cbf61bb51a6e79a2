"""The collector's own metrics: what became of events, and what was put on the stream.

    metering_events_total{outcome,code}                  accepted (code is empty) | rejected | unavailable
    metering_pending_events                              submitted, no outcome yet; of the workers that live
    metering_put_records_duration_seconds                a PutRecords call, answered or failed; _count: how many
    metering_put_records_size_bytes                      what a call carried: bytes,
    metering_put_records_size_records                    records
    metering_put_records_size_events                     and events in them; _sum of each: in all
    metering_put_records_retried_records_total{reason}   records that were put again

A call is counted once, whatever came of it; its records again when they are put again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metering.metrics import DURATION_BUCKETS_S

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

CALL_FAILED = "call_failed"
_RETRY_REASONS = frozenset({CALL_FAILED, "ProvisionedThroughputExceededException", "InternalFailure"})
"""The codes of a refused record that the API reference of PutRecords names; another one would be a new series."""
_BYTES_BUCKETS = (1e3, 5e3, 25e3, 1e5, 2.5e5, 5e5, 1e6, 2.5e6, 5e6)
_RECORDS_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_EVENTS_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4)


class CollectorMetrics:
    """Counts for one app; methods may be called by any thread, and cost microseconds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register with the registry that add_metrics returned; once for each."""
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415 - as in metering/metrics.py

        def sizes(unit: str, buckets: tuple[float, ...]) -> Histogram:
            name = f"metering_put_records_size_{unit}"
            return Histogram(name, f"{unit} in a PutRecords call", buckets=buckets, registry=registry)

        self._events = Counter("metering_events_total", "Events by outcome", ("outcome", "code"), registry=registry)
        self._accepted = self._events.labels("accepted", "")
        self._pending = Gauge(
            "metering_pending_events", "Events without outcome", registry=registry, multiprocess_mode="livesum"
        )
        self._put_s = Histogram(
            "metering_put_records_duration_seconds",
            "Time of a PutRecords call",
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._put_bytes = sizes("bytes", _BYTES_BUCKETS)
        self._put_records = sizes("records", _RECORDS_BUCKETS)
        self._put_events = sizes("events", _EVENTS_BUCKETS)
        self._retried = Counter(
            "metering_put_records_retried_records_total", "Records put again", ("reason",), registry=registry
        )

    def events_accepted(self, events: int = 1) -> None:
        """Count events that the stream holds and whose sender is told so."""
        self._accepted.inc(events)

    def events_rejected(self, code: str, events: int = 1) -> None:
        """Count events that broke a rule. code: the stable one of the answer, never text of the client's."""
        self._events.labels("rejected", code).inc(events)

    def events_unavailable(self, events: int = 1, *, code: str = "unavailable") -> None:
        """Count events that were in order and are not held, or may be. code: `unavailable`, `too_many_pending`, …."""
        self._events.labels("unavailable", code).inc(events)

    def pending(self, events: int) -> None:
        """Say how many events of this process have no outcome yet. Call it under the lock that guards their number."""
        self._pending.set(events)

    def put_records(self, *, records: int, events: int, data_bytes: int, seconds: float) -> None:
        """Count one PutRecords call, whatever came of it."""
        self._put_s.observe(seconds)
        self._put_bytes.observe(data_bytes)
        self._put_records.observe(records)
        self._put_events.observe(events)

    def put_retried(self, reason: str, records: int) -> None:
        """Count records that are put again. reason: Kinesis's code for a refused record, or CALL_FAILED."""
        self._retried.labels(reason if reason in _RETRY_REASONS else "other").inc(records)
