"""Rounds over usage: what is recorded, until when, what is resolved, and how messages are posted and given up."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.alerting import ATTEMPT, FAILURES_ROUND_MAX, POSTING_ROUND_S, Retries
from billing.alerts import LATE, newly_crossed, watched_spans
from billing.alerts_file import ALERTS_FILE
from billing.webhook import CONNECT_S, POST_S, Outcome
from metering.alerts import Delivery, Kind, Message, Notice
from metering.errors import StoreUnavailableError
from metering.meters_file import METERS_FILE
from metering.windows import WindowRow
from tests.builders import NOW
from tests.unit.alert_world import DAILY, DAY, HOUR, MINUTE, AlertWorld

MOMENT = timedelta(microseconds=1)
MIDNIGHT = NOW.replace(hour=0, minute=0) + DAY
FAR = Decimal("1e15")
usages = st.decimals(0, FAR, allow_nan=False, places=2)


# ── Thresholds ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(usages, min_size=1, unique=True).map(sorted), usages, usages)
def test_what_is_crossed_never_shrinks_as_usage_grows(thresholds: list[Decimal], one: Decimal, two: Decimal) -> None:
    less, more = sorted((one, two))
    before = newly_crossed(thresholds, less, ())
    after = newly_crossed(thresholds, more, ())
    assert after[: len(before)] == before
    assert newly_crossed(thresholds, more, before) == after[len(before) :]
    assert newly_crossed(thresholds, more, after) == []


def test_a_threshold_is_crossed_when_it_is_reached() -> None:
    world = AlertWorld()
    runner = world.runner()
    world.use("9.999999999")
    runner.round()
    assert world.found() == []
    world.use("0.000000001")
    runner.round()
    assert world.thresholds() == [Decimal(10)]
    world.use("100")
    runner.round()
    assert world.thresholds() == [Decimal(10), Decimal(20)]


def test_an_alert_says_what_was_seen_and_stays_so() -> None:
    world = AlertWorld(
        "timezone: Europe/Berlin\nalerts: [{name: high, metric: api_calls, period: month, thresholds: [10, 20]}]"
    )
    world.complete(NOW - MINUTE)
    world.use("12.5")
    world.runner().round()
    world.now += MINUTE
    world.use("1")
    world.runner().round()
    (alert,) = world.found()
    crossing = alert.crossing
    assert (crossing.usage, crossing.crossed_at, crossing.as_of) == (Decimal("12.5"), NOW, NOW - MINUTE)
    assert crossing.watched.start.isoformat() == "2023-12-31T23:00:00+00:00"
    assert crossing.watched.end.isoformat() == "2024-01-31T23:00:00+00:00"


def test_a_void_does_not_unsay_it() -> None:
    world = AlertWorld()
    world.use("10")
    world.runner().round()
    world.tables.rows.clear()
    world.runner().round()
    assert world.thresholds() == [Decimal(10)]


def test_who_is_named_is_watched_else_everybody() -> None:
    text = """\
alerts:
  - {name: some, tenants: [t1, t2], metric: api_calls, period: day, thresholds: [1]}
  - {name: all, metric: api_calls, period: day, thresholds: [1]}
"""
    world = AlertWorld(text)
    for tenant_id in ("t1", "t3", "t5"):
        world.use("1", tenant_id=tenant_id)
    world.runner().round()
    names = {t: [each.crossing.watched.name for each in world.found(t)] for t in ("t1", "t2", "t3", "t5")}
    assert {t: sorted(found) for t, found in names.items()} == {"t1": ["all", "some"], "t2": [], "t3": ["all"],
                                                                "t5": ["all"]}  # fmt: skip


def test_the_directory_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.alerting.TENANTS_EACH", 2)
    world = AlertWorld()
    tenants = [f"t{number}" for number in range(5)]
    for tenant_id in tenants:
        world.use("10", tenant_id=tenant_id)
    world.runner().round()
    assert all(world.thresholds(tenant_id) == [Decimal(10)] for tenant_id in tenants)


# ── What is read ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_counter_that_stands_still_is_not_read_again_once_its_windows_are_sure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = AlertWorld()
    windows, reads = world.tables.windows, []

    def counted(*arguments: Any, **named: Any) -> Any:
        reads.append(world.now)
        return windows(*arguments, **named)

    monkeypatch.setattr(world.tables, "windows", counted)
    runner = world.runner()
    world.use("1")
    runner.round()
    reads.clear()
    for _ in range(5):
        world.go_to(world.now + MINUTE)
        runner.round()
    assert reads == [NOW + MINUTE]
    world.use("1")
    runner.round()
    assert reads == [NOW + MINUTE, world.now]
    world.complete(None)
    for _ in range(3):
        runner.round()
    assert len(reads) >= 5  # as long as nothing is sure, each time


def test_no_more_counters_are_remembered_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.alerting.SEEN_MAX", 2)
    world = AlertWorld()
    for number in range(3):
        world.use("1", tenant_id=f"t{number}")
    runner = world.runner()
    for _ in range(3):
        world.go_to(world.now + 2 * MINUTE)
        runner.round()
    looked: list[str] = []

    def usage(tenant_id: str, *_: object, **__: object) -> list[WindowRow]:
        looked.append(tenant_id)
        return []

    monkeypatch.setattr(world.tables, "windows", usage)
    runner.round()
    assert set(looked) == {"t2"}


def test_a_window_that_is_written_after_the_total_is_looked_at_all_the_same() -> None:
    world = AlertWorld()
    runner = world.runner()
    world.use("10")
    (key,) = (key for key in world.tables.rows if key.sk.startswith("HOUR#"))
    late = world.tables.rows.pop(key)
    for _ in range(10):  # the consumer's write is tried again and again: as_of stands still
        world.now += MINUTE
        runner.round()
    assert world.found() == []
    world.tables.rows[key] = late
    runner.round()
    assert world.thresholds() == [Decimal(10)]


# ── Meters ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_usage_is_that_of_the_metrics_meter() -> None:
    meters = METERS_FILE.parse(b"meters: {seats: {aggregation: max}, jobs: {aggregation: count}}", name="f")
    text = """\
alerts:
  - {name: seats, metric: seats, period: day, thresholds: [5, 6]}
  - {name: jobs, metric: jobs, period: day, thresholds: [2, 3]}
"""
    world = AlertWorld(text, meters=meters)
    for value in ("5", "4"):
        world.use(value, metric="seats")
        world.use(value, metric="jobs")
    world.runner().round()
    assert world.thresholds() == [Decimal(2), Decimal(5)]


def test_usage_that_is_not_known_decides_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    world = AlertWorld("alerts: [{name: seats, metric: seats, period: day, thresholds: [5]}]")
    world.use("9", metric="seats")
    world.meters = METERS_FILE.parse(b"meters: {seats: {aggregation: max}}", name="f")
    runner = world.runner()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            runner.round()
    assert world.found() == []
    (line,) = caplog.messages
    assert line.startswith("Usage is not known, and no alert decided: name=seats, tenant=tenant-123, metric=seats: ")
    for _ in range(3):
        world.go_to(world.now + 2 * MINUTE)  # long enough to be sure of a counter that stands still
        runner.round()
    world.use("1", metric="seats")
    with caplog.at_level(logging.WARNING):
        runner.round()
    assert len(caplog.messages) == 1


def test_a_row_that_the_periods_border_cuts_decides_nothing_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Counted by the hour once: midnight in Kolkata is at 18:30.
    text = "timezone: Asia/Kolkata\nalerts: [{name: high, metric: api_calls, period: day, thresholds: [1]}]"
    world = AlertWorld(text)
    world.use("5", at=NOW.replace(day=14, hour=18, minute=40))
    world.use("5", tenant_id="tenant-2")
    world.runner().round()
    assert (world.found(), len(world.found("tenant-2"))) == ([], 1)
    assert "lies within a window" in caplog.text


# ── Periods ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_next_period_begins_anew_and_resolves_the_last_once() -> None:
    world = AlertWorld()
    runner = world.runner()
    world.use("10")
    runner.round()
    world.go_to(MIDNIGHT - MINUTE)
    runner.round()
    assert [alert.resolved_at for alert in world.found()] == [None]
    world.go_to(MIDNIGHT)
    runner.round()
    world.go_to(MIDNIGHT + MINUTE)
    runner.round()
    (alert,) = world.found()
    assert alert.resolved_at == MIDNIGHT
    assert [message.kind for message in world.receiver.posts] == [Kind.CROSSED, Kind.RESOLVED]
    world.use("25")
    runner.round()
    assert world.thresholds() == [Decimal(10), Decimal(10), Decimal(20)]


def test_a_period_is_not_over_before_as_of_has_passed_its_end() -> None:
    world = AlertWorld()
    world.use("10")
    runner = world.runner()
    runner.round()
    world.go_to(MIDNIGHT + LATE + HOUR)
    for known in (None, MIDNIGHT - MINUTE):
        world.complete(known)
        runner.round()
        assert world.found()[0].resolved_at is None
    world.use("10", at=MIDNIGHT - MINUTE)  # held by the stream then, counted only now
    world.complete(MIDNIGHT)
    runner.round()
    assert [alert.crossing.threshold for alert in world.found() if alert.resolved_at] == [Decimal(20), Decimal(10)]


def test_late_usage_is_looked_at_for_an_hour_and_resolved_at_once() -> None:
    world = AlertWorld()
    runner = world.runner()
    world.go_to(MIDNIGHT + LATE - MINUTE)
    world.use("10", at=MIDNIGHT - MINUTE)
    runner.round()
    (alert,) = world.found()
    assert (alert.crossing.watched.end, alert.resolved_at) == (MIDNIGHT, world.now)
    world.go_to(MIDNIGHT + LATE)
    runner.round()
    world.use("10", at=MIDNIGHT - MINUTE)
    runner.round()
    assert world.thresholds() == [Decimal(10)]


def test_the_period_before_is_looked_at_by_whoever_was_away_at_its_end() -> None:
    world = AlertWorld()
    world.use("10")
    world.go_to(MIDNIGHT + DAY - MINUTE)
    world.runner().round()
    assert world.thresholds() == [Decimal(10)]
    assert world.found()[0].resolved_at == world.now


@pytest.mark.parametrize("restarted", [False, True])
def test_periods_that_as_of_has_not_passed_are_looked_at_however_long_ago_they_were(*, restarted: bool) -> None:
    world = AlertWorld()
    runner = world.runner()
    runner.round()
    for days in range(1, 4):  # nothing is counted meanwhile
        world.now = NOW + days * DAY
        for known in (None, NOW):
            world.complete(known)
            runner.round()
    runner = world.runner() if restarted else runner
    runner.round()
    for days in range(3):  # then what the stream held
        world.use("10", at=NOW + days * DAY)
    world.complete(NOW + 2 * DAY)
    runner.round()
    ends = [MIDNIGHT + days * DAY for days in range(3)]
    assert sorted(alert.crossing.watched.end for alert in world.found() if alert.resolved_at) == ends[:2]
    world.go_to(world.now)
    runner.round()
    assert sorted(alert.crossing.watched.end for alert in world.found() if alert.resolved_at) == ends


def test_periods_are_looked_at_from_the_first_that_is_not_over() -> None:
    daily, now = ALERTS_FILE.parse(DAILY.encode(), name="f"), MIDNIGHT + 4 * DAY

    def days(as_of: datetime | None, looked_as_of: datetime | None) -> int:
        spans = watched_spans(daily, daily.rules[0], now=now, as_of=as_of, looked_as_of=looked_as_of)
        assert spans[-1].start == now
        assert all(one.end == other.start for one, other in pairwise(spans))
        return len(spans)

    assert days(None, None) == days(now, None) == 2
    assert days(now, now) == days(now, now + LATE - MOMENT) == 2
    assert days(None, now + LATE) == days(now, now + LATE) == 1
    assert days(now, now - DAY + LATE) == 2
    assert days(now, now - DAY + LATE - MOMENT) == days(now - DAY, None) == 3
    assert days(datetime.min.replace(tzinfo=UTC) + DAY, None) == 366  # Kinesis holds nothing that is older


def test_an_alert_that_is_no_longer_in_the_file_is_resolved_too() -> None:
    world = AlertWorld()
    world.use("10")
    world.runner().round()
    world.alerts = replace(world.alerts, rules=())
    world.go_to(MIDNIGHT)
    world.runner().round()
    assert world.found()[0].resolved_at == MIDNIGHT


def test_a_store_that_is_away_ends_the_round_and_resolves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = AlertWorld()
    world.use("10")
    assert world.runner().round()
    world.go_to(MIDNIGHT)

    class Away(type(world.tables)):  # type: ignore[misc]  # the same tables, whose windows can't be read
        def windows(self, *_: object, **__: object) -> None:
            raise StoreUnavailableError("away")

    away = Away()
    away.__dict__.update(world.tables.__dict__)
    assert not world.runner(reader=away).round()
    assert world.found()[0].resolved_at is None
    assert "Alerts wait for the next round: away" in caplog.messages


# ── Messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_says_the_alert_in_exact_numbers() -> None:
    world = AlertWorld(
        "timezone: Europe/Berlin\nalerts: [{name: high, metric: api_calls, period: day, thresholds: ['0.3']}]"
    )
    world.use("123456789012345.123456789")
    world.runner().round()
    world.go_to(NOW.replace(hour=23, minute=0))
    world.runner().round()
    crossed, resolved = (json.loads(message.body, parse_float=str) for message in world.receiver.posts)
    alert_id = world.found()[0].crossing.alert_id
    assert crossed == {
        "type": "usage.alert.crossed",
        "timestamp": "2024-01-15T10:30:00.000Z",
        "data": {
            "tenant_id": "tenant-123",
            "id": alert_id,
            "name": "high",
            "metric": "api_calls",
            "period": "day",
            "start": "2024-01-15T00:00:00+01:00",
            "end": "2024-01-16T00:00:00+01:00",
            "timezone": "Europe/Berlin",
            "threshold": "0.3",
            "usage": "123456789012345.123456789",
            "crossed_at": "2024-01-15T10:30:00.000Z",
            "crossed_as_of": "2024-01-15T10:30:00.000Z",
            "state": "open",
            "resolved_at": None,
        },
    }
    at = "2024-01-15T23:00:00.000Z"
    assert resolved["data"] == {**crossed["data"], "state": "resolved", "resolved_at": at}
    assert (resolved["type"], resolved["timestamp"]) == ("usage.alert.resolved", at)
    assert world.receiver.ids() == [f"{alert_id}_crossed", f"{alert_id}_resolved"]


def test_without_a_webhook_alerts_are_recorded_alone() -> None:
    world = AlertWorld()
    world.use("10")
    world.runner(poster=None).round()
    world.go_to(MIDNIGHT)
    world.runner(poster=None).round()
    (alert,) = world.found()
    assert (alert.crossed, alert.resolved, alert.resolved_at) == (None, None, MIDNIGHT)
    assert world.tables.outbox == {}


def test_what_is_not_taken_is_posted_again_later_and_the_same() -> None:
    world = AlertWorld()
    world.receiver.outcomes = [Outcome.FAILED] * 3
    world.use("10")
    waits = []
    for _ in range(4):
        world.runner().round()
        begun = world.now
        while len(world.tables.outbox) and not world.tables.due_messages(world.now, limit=1):
            world.now += timedelta(seconds=1)
        waits.append((world.now - begun).total_seconds())
    assert waits == [5, 10, 20, 0]
    assert len(world.receiver.posts) == 4
    assert len({(post.message_id, post.body) for post in world.receiver.posts}) == 1
    assert world.found()[0].crossed == Notice(Delivery.POSTED, NOW + timedelta(seconds=35))


def test_nobody_else_posts_while_a_receiver_takes_its_time() -> None:
    world = AlertWorld()
    others: list[int] = []

    class Slow:
        def post(self, message: Message, *, now: datetime) -> Outcome:
            outcome = world.receiver.post(message, now=now)
            for _ in range(int(CONNECT_S + POST_S)):
                world.now += timedelta(seconds=1)
                world.runner(poster=Other()).round()
            return outcome

    class Other:
        def post(self, message: Message, *, now: datetime) -> Outcome:
            others.append(1)
            return Outcome.POSTED

    world.use("10")
    world.runner(poster=Slow()).round()
    world.now += HOUR
    world.runner(poster=Other()).round()
    assert (len(world.receiver.posts), others) == (1, [])


def test_an_attempt_of_which_no_end_is_known_is_over_soon() -> None:
    world = AlertWorld()

    class Dies:
        def post(self, message: Message, *, now: datetime) -> Outcome:
            raise KeyboardInterrupt

    world.use("10")
    with pytest.raises(KeyboardInterrupt):
        world.runner(poster=Dies()).round()
    world.runner().round()
    assert world.receiver.posts == []
    world.now += ATTEMPT
    world.runner().round()
    assert [post.attempts for post in world.receiver.posts] == [2]
    assert world.tables.outbox == {}


def test_waits_grow_to_an_hour_and_are_never_the_same_for_all() -> None:
    retries = Retries()
    assert [retries.wait(attempts, 1.0).total_seconds() for attempts in (1, 2, 5, 10, 11, 10_000)] == [
        5, 10, 80, 2560, 3600, 3600
    ]  # fmt: skip
    assert retries.wait(2, 0.0) == retries.wait(2, 1.0) / 2


def test_after_three_days_it_is_given_up_and_said(caplog: pytest.LogCaptureFixture) -> None:
    world = AlertWorld()
    world.receiver.outcomes = [Outcome.FAILED] * 1000
    world.use("10")
    runner = world.runner()
    runner.round()
    while world.tables.outbox:
        world.now += HOUR
        runner.round()
    assert world.now - NOW == 3 * DAY
    assert world.found()[0].crossed == Notice(Delivery.FAILED)
    alert_id = world.found()[0].crossing.alert_id
    assert f"Alert {alert_id}_crossed is given up after {len(world.receiver.posts)} attempts to post it" in caplog.text


def test_what_was_never_tried_is_tried_however_old_it_is() -> None:
    world = AlertWorld()
    world.use("10")
    world.runner(goes_on=iter([True, True, False]).__next__).round()
    assert (len(world.found()), world.receiver.posts) == (1, [])
    world.now += 5 * DAY
    world.runner().round()
    assert world.receiver.ids() == [world.found()[0].crossing.message_id(Kind.CROSSED)]


def test_who_answers_gone_is_not_posted_to_again() -> None:
    world = AlertWorld()
    world.receiver.outcomes = [Outcome.GONE]
    world.use("10")
    for _ in range(2):
        world.runner().round()
        world.now += HOUR
    assert len(world.receiver.posts) == 1
    assert world.found()[0].crossed == Notice(Delivery.FAILED)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.GONE])
def test_failures_end_a_round_only_in_a_row(outcome: Outcome) -> None:
    world = AlertWorld()
    for number in range(10):
        world.use("10", tenant_id=f"t{number}")
    world.receiver.outcomes = [outcome, outcome, Outcome.POSTED, outcome, outcome, outcome, Outcome.POSTED]
    world.runner().round()
    assert len(world.receiver.posts) == 6


def test_a_receiver_that_is_away_or_slow_holds_up_no_round() -> None:
    world = AlertWorld()
    for number in range(50):
        world.use("10", tenant_id=f"t{number}")
    world.receiver.outcomes = [Outcome.FAILED] * FAILURES_ROUND_MAX
    world.runner().round()
    assert len(world.receiver.posts) == FAILURES_ROUND_MAX
    world.receiver.seconds_each = POSTING_ROUND_S / 4
    world.runner().round()
    assert len(world.receiver.posts) == FAILURES_ROUND_MAX + 4
    world.receiver.seconds_each = 0
    world.now += MINUTE
    world.runner().round()
    assert len(set(world.receiver.ids())) == 50
