"""An audit's report as lines for a person. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from metering.events import decimal_text, time_text
from operations.audit import AuditReport
from operations.audit_compare import SHOWN_MAX

_COLUMNS = ("records", "events", "counted", "duplicates", "rejected", "not readable")


def report_lines(report: AuditReport) -> Iterator[str]:
    """Yield the report: shards, rows, what could not be checked, differences; the last line is the verdict."""
    yield (
        f"stream {report.stream.name}, made {time_text(report.stream.created_at)}, "
        f"read {'from its oldest record on' if report.since is None else f'since {time_text(report.since)}'}"
    )
    yield from _table(report)
    checked = report.checked
    yield (
        f"rows: {checked.exactly} checked exactly, {checked.within} between bounds, "
        f"{checked.at_least} for no less than was read"
    )
    yield from _voided(report)
    yield from _unchecked(report)
    shown = [*report.rows.shown, *report.events.shown][:SHOWN_MAX]
    yield from map(str, shown)
    if report.differences > len(shown):
        yield f"and {report.differences - len(shown)} more"
    yield "no difference" if not report.differences else f"{report.differences} difference(s)"


def _table(report: AuditReport) -> Iterator[str]:
    names = ["shard", *(line.shard.shard.shard_id for line in report.shards)]
    rows = [_COLUMNS]
    for line in report.shards:
        shard = line.shard
        events = shard.counted + shard.duplicates + shard.rejected + shard.unknown
        numbers = (shard.records, events, shard.counted, shard.duplicates, shard.rejected, line.gone)
        rows.append(tuple(map(str, numbers)))  # type: ignore[arg-type]
    width = max(map(len, names))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, row in zip(names, rows, strict=True):
        yield "  ".join([name.ljust(width), *(cell.rjust(n) for cell, n in zip(row, widths, strict=True))])


def _voided(report: AuditReport) -> Iterator[str]:
    for key, amount in report.voided[:SHOWN_MAX]:
        yield f"voided: {amount.events} event(s), usage {decimal_text(amount.usage)}, of {key.pk} {key.sk}"
    if more := report.voided[SHOWN_MAX:]:
        yield f"voided: {sum(amount.events for _, amount in more)} event(s) of {len(more)} more"


def _unchecked(report: AuditReport) -> Iterator[str]:
    gone = sum(line.gone for line in report.shards)
    if gone:
        why = "past retention" if report.since is None else "before --since or past retention"
        yield f"not checked: {gone} record(s) {why}"
    if report.unlisted:
        records = sum(shard.records for shard in report.unlisted)
        shards = ", ".join(shard.shard_id for shard in report.unlisted)
        yield f"not checked: {records} record(s) of shards that are past retention altogether: {shards}"
    if report.unknown:
        yield f"not checked: whether {report.unknown} event(s) counted, whose claims have expired"
    if report.checked.uncovered:
        yield f"not checked: the max or latest of {report.checked.uncovered} row(s) with events from before their meter"
    if report.expired:
        yield f"not checked: the rows of {report.expired} rejected event(s), which may have expired"
