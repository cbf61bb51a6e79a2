"""When an event counts: RFC 3339, the clock's tolerance, and what stands in for a timestamp that is not there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from metering.errors import InvalidEventError
from metering.events import decode_json, parse_event, parse_stream_event, parse_timestamp, time_text
from tests.builders import NOW, event

GOOD = {"tenant_id": "tenant-123", "metric": "api_calls", "value": "10"}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-01-15T10:00:00Z", datetime(2024, 1, 15, 10, tzinfo=UTC)),
        ("2024-01-15t10:00:00z", datetime(2024, 1, 15, 10, tzinfo=UTC)),
        ("2024-01-15T10:00:00.5Z", datetime(2024, 1, 15, 10, 0, 0, 500_000, tzinfo=UTC)),
        ("2024-01-15T10:00:00.123456789Z", datetime(2024, 1, 15, 10, 0, 0, 123_456, tzinfo=UTC)),
        ("2024-01-15T10:00:00.999999999Z", datetime(2024, 1, 15, 10, 0, 0, 999_999, tzinfo=UTC)),
        ("2024-01-15T10:00:00+05:30", datetime(2024, 1, 15, 4, 30, tzinfo=UTC)),
        ("2024-01-15T10:00:00-05:30", datetime(2024, 1, 15, 15, 30, tzinfo=UTC)),
        ("2024-01-15T10:00:00-00:00", datetime(2024, 1, 15, 10, tzinfo=UTC)),
        ("2024-01-15T10:00:00+23:59", datetime(2024, 1, 14, 10, 1, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("2016-12-31T23:59:60.5Z", datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_rfc_3339_is_read_in_all_its_forms(text: str, moment: datetime) -> None:
    assert parse_timestamp(text) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024-01-15",
        "2024-01-15T10:00:00",  # no offset: whose ten o'clock?
        "2024-01-15 10:00:00Z",
        "2024-01-15T10:00Z",
        "2024-01-15T10:00:00+0530",
        "2024-01-15T10:00:00+24:00",
        "2024-01-15T10:00:00+05:60",
        "2024-01-15T24:00:00Z",  # Python 3.14 would read it as the next day
        "2024-01-15T10:60:00Z",
        "2024-01-15T10:00:61Z",
        "2024-02-30T10:00:00Z",
        "2023-02-29T10:00:00Z",
        "2024-13-01T10:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",  # before year 1
        "9999-12-31T23:59:59-00:01",  # after year 9999
        "10000-01-01T00:00:00Z",
        "2024-01-15T10:00:00.Z",
        "2024-01-15T10:00:00.1234567890Z",
        "2024-01-15T10:00:00." + "0" * 1_000_000 + "Z",  # would not fit into a record
        "2024-01-15T10:00:00Z\n",
        " 2024-01-15T10:00:00Z",
        "٢٠٢٤-01-15T10:00:00Z",
        "20240115T100000Z",
        "2024-W03-1T10:00:00Z",
        "1705312800",
        None,
        True,
        1705312800,
    ],
    ids=lambda text: str(text)[:32],
)
def test_other_timestamps_are_refused(text: object) -> None:
    with pytest.raises(InvalidEventError) as caught:
        parse_event({**GOOD, "timestamp": text}, now=NOW)
    assert (caught.value.code, caught.value.field) == ("invalid_timestamp", "timestamp")


def test_a_json_number_is_no_timestamp() -> None:
    with pytest.raises(InvalidEventError, match="invalid_timestamp"):
        parse_event(decode_json(b'{"tenant_id":"t","metric":"m","value":1,"timestamp":20240115}'), now=NOW)


def test_five_minutes_ahead_is_taken_and_a_microsecond_more_is_refused() -> None:
    edge = NOW + timedelta(minutes=5)
    assert event(timestamp=edge.isoformat()).occurred_at == edge
    with pytest.raises(InvalidEventError) as caught:
        event(timestamp=(edge + timedelta(microseconds=1)).isoformat())
    assert (caught.value.code, caught.value.field) == ("timestamp_in_future", "timestamp")


def test_the_age_limit_is_off_unless_set_and_exact_when_set() -> None:
    assert event(timestamp="0001-01-01T00:00:00Z").occurred_at.year == 1
    edge = NOW - timedelta(days=30)
    raw = {**GOOD, "timestamp": edge.isoformat()}
    assert parse_event(raw, now=NOW, age_days_max=30).occurred_at == edge
    raw["timestamp"] = (edge - timedelta(microseconds=1)).isoformat()
    with pytest.raises(InvalidEventError) as caught:
        parse_event(raw, now=NOW, age_days_max=30)
    assert (caught.value.code, caught.value.field) == ("timestamp_too_old", "timestamp")


def test_an_event_without_a_timestamp_counts_for_its_receipt() -> None:
    taken = event()
    assert taken.timestamp is None
    assert taken.occurred_at == taken.received_at == NOW


def test_an_event_of_another_producer_counts_for_its_arrival() -> None:
    taken = parse_stream_event(GOOD, arrived_at=NOW)
    assert taken.received_at is None
    assert taken.occurred_at == NOW


def test_time_rules_on_the_stream_hold_against_the_receipt_whenever_it_is_read() -> None:
    raw = {**GOOD, "timestamp": "2024-01-15T10:34:00Z", "received_at": time_text(NOW)}
    early, late = NOW - timedelta(days=1), NOW + timedelta(days=400)
    assert parse_stream_event(raw, arrived_at=early, age_days_max=30) == parse_stream_event(
        raw, arrived_at=late, age_days_max=30
    )


def test_the_receipt_keeps_milliseconds_as_the_stream_does() -> None:
    taken = parse_event(GOOD, now=NOW.replace(microsecond=123_999))
    assert taken.received_at == taken.occurred_at == NOW.replace(microsecond=123_000)


def test_the_text_of_a_time_is_utc_with_milliseconds_cut_off() -> None:
    assert time_text(datetime(2024, 1, 15, 10, 0, 0, 999_999, tzinfo=UTC)) == "2024-01-15T10:00:00.999Z"
    assert time_text(datetime.fromisoformat("2024-01-15T10:00:00+05:30")) == "2024-01-15T04:30:00.000Z"
