"""Months, days, and the parts of a month that a tenant's plans make."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.plans import Period, Plans, parse_period, parts, period_at
from billing.plans_file import PLANS_FILE

JANUARY = Period(2024, 1)
AFTER = ("a", 3, 32)


def plans(default: str = "a", timezone: str = "UTC") -> Plans:
    lines = [f"default_plan: {default}", f"timezone: {timezone}", "plans: {a: {currency: EUR}, b: {currency: EUR}}"]
    return PLANS_FILE.parse("\n".join(lines).encode(), name="plans.yaml")


def month(text: str) -> Period:
    period = parse_period(text)
    assert period is not None
    return period


def spans(found: Plans, period: Period = JANUARY) -> list[tuple[str, date, date]]:
    return [(part.plan.name, part.first_day, part.end_day) for part in parts(found, "t", period)]


# ── Periods ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["1970-01", "2024-02", "9998-12"])
def test_a_period_is_a_month(text: str) -> None:
    period = month(text)
    assert str(period) == text
    assert period.next_first_day - timedelta(days=1) >= period.first_day + timedelta(days=27)


@pytest.mark.parametrize(
    "text",
    [
        *("", "2024", "2024-13", "2024-00", "0000-01", "1969-12", "9999-12", "10000-01", "2024-1", "2024-01-01"),
        *("2024-01\n", " 2024-01", "-2024-01", "٢٠٢٤-01"),
    ],
)
def test_what_is_no_month_is_refused(text: str) -> None:
    assert parse_period(text) is None


def test_a_december_ends_with_the_year() -> None:
    assert month("2024-12").next_first_day == date(2025, 1, 1)


def test_the_month_now_is_that_of_the_zone() -> None:
    moment = datetime(2024, 1, 31, 23, 30, tzinfo=UTC)
    assert (period_at(moment, "UTC"), period_at(moment, "Europe/Berlin")) == (JANUARY, Period(2024, 2))


@pytest.mark.parametrize(
    ("timezone", "period", "start", "end"),
    [
        ("UTC", "2024-02", "2024-02-01T00:00Z", "2024-03-01T00:00Z"),
        ("Europe/Berlin", "2024-03", "2024-02-29T23:00Z", "2024-03-31T22:00Z"),
        ("Asia/Kathmandu", "2024-01", "2023-12-31T18:15Z", "2024-01-31T18:15Z"),
        ("America/Sao_Paulo", "2018-11", "2018-11-01T03:00Z", "2018-12-01T02:00Z"),
        ("Asia/Amman", "2022-04", "2022-03-31T21:00Z", "2022-04-30T21:00Z"),
        ("Pacific/Kiritimati", "9998-12", "9998-11-30T10:00Z", "9998-12-31T10:00Z"),
        ("Pacific/Pago_Pago", "9998-12", "9998-12-01T11:00Z", "9999-01-01T11:00Z"),
        # The clocks go back at midnight of the 1st, so that 00:00 comes twice: the month begins with the first.
        ("America/Havana", "2015-11", "2015-11-01T04:00Z", "2015-12-01T05:00Z"),
        # 00:00 of April 1st does not exist: the month begins with 01:00, at the moment of the change.
        ("Asia/Damascus", "2011-04", "2011-03-31T22:00Z", "2011-04-30T21:00Z"),
    ],
)
def test_a_month_begins_and_ends_at_local_midnight(timezone: str, period: str, start: str, end: str) -> None:
    (part,) = parts(plans(timezone=timezone), "t", month(period))
    assert (part.start, part.end) == (datetime.fromisoformat(start), datetime.fromisoformat(end))
    assert part.share == 1
    assert part.start.tzinfo is UTC


# ── Parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_that_does_not_change_makes_one_part() -> None:
    found = parts(plans(), "t", JANUARY)
    assert [(part.plan.name, part.share) for part in found] == [("a", 1)]


def test_a_change_in_mid_period_makes_two_parts_that_meet_at_local_midnight() -> None:
    found = parts(plans("[{plan: a}, {plan: b, from: 2024-01-16}]", "Europe/Berlin"), "t", JANUARY)
    assert [(part.plan.name, part.share) for part in found] == [("a", Fraction(15, 31)), ("b", Fraction(16, 31))]
    assert found[0].end == found[1].start == datetime(2024, 1, 15, 23, tzinfo=UTC)
    assert not any(part.share == 1 for part in found)


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ("[{plan: a}, {plan: b, from: 2024-01-01}]", [("b", 1, 32)]),
        ("[{plan: a}, {plan: b, from: 2024-02-01}]", [("a", 1, 32)]),
        ("[{plan: a}, {plan: b, from: 2024-01-31}]", [("a", 1, 31), ("b", 31, 32)]),
        ("[{plan: a}, {plan: b, from: 2024-01-02}, {plan: a, from: 2024-01-03}]", [("a", 1, 2), ("b", 2, 3), AFTER]),
        ("[{plan: a}, {plan: a, from: 2024-01-16}]", [("a", 1, 32)]),
        ("[{plan: b}, {plan: a, from: 2020-01-01}, {plan: b, from: 2030-01-01}]", [("a", 1, 32)]),
    ],
)  # fmt: skip
def test_the_plan_of_a_day_is_the_last_that_began(default: str, expected: list[tuple[str, int, int]]) -> None:
    first = JANUARY.first_day
    days = [(name, first + timedelta(begin - 1), first + timedelta(end - 1)) for name, begin, end in expected]
    assert spans(plans(default)) == days


@given(
    st.sets(st.dates(min_value=date(2023, 12, 20), max_value=date(2024, 3, 10)), max_size=6),
    st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Apia"]),
    st.sampled_from([Period(2024, month) for month in (1, 2, 3)]),
)
def test_the_parts_are_the_period_without_a_gap(days: set[date], timezone: str, period: Period) -> None:
    entries = ["{plan: a}", *(f"{{plan: {'ab'[i % 2]}, from: {day}}}" for i, day in enumerate(sorted(days), 1))]
    found = parts(plans(f"[{', '.join(entries)}]", timezone), "t", period)
    assert sum(part.share for part in found) == 1
    ends = [part.end_day for part in found]
    assert [part.first_day for part in found] == [period.first_day, *ends[:-1]]
    assert ends[-1] == period.next_first_day
    for part in found:
        zone = ZoneInfo(timezone)
        assert part.start < part.end
        assert (part.start.astimezone(zone).date(), part.end.astimezone(zone).date()) == (part.first_day, part.end_day)
        middle = part.start + (part.end - part.start) / 2
        starts = [day for day in days if day <= middle.astimezone(zone).date()]
        assert part.plan.name == "ab"[len(starts) % 2]


def test_a_tenant_has_its_own_plan_or_the_default() -> None:
    text = b"default_plan: a\ntenants: {no: b}\nplans: {a: {currency: EUR}, b: {currency: USD}}"
    found = PLANS_FILE.parse(text, name="plans.yaml")
    assert [found.of(tenant)[0].plan.name for tenant in ("no", "t")] == ["b", "a"]
