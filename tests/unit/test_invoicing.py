"""Invoices: lines, fees, the minimum, months in which the plan changes, and the laws that hold for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.invoice_forms import invoice_members, share_words
from billing.invoicing import Invoice, make_invoice, needed_usage, rounded
from billing.plans import Part, Period, parts
from billing.plans_file import PLANS_FILE
from tests.unit.plan_files import CHANGE, WHOLE

JANUARY = Period(2024, 1)


def invoice(plans: str, usage: dict[str, str] | dict[tuple[str, str], str], metrics: Iterable[str] = ()) -> Invoice:
    """The invoice of tenant t for January. usage: of a metric, or of a metric while a plan is in force."""

    def usage_of(metric: str, part: Part) -> Decimal:
        found: dict[object, str] = {**usage}
        return Decimal(found.get((metric, part.plan.name), found.get(metric, "0")))

    names = {key if isinstance(key, str) else key[0] for key in usage} | set(metrics)
    return make_invoice(PLANS_FILE.parse(plans.encode(), name="f"), "t", JANUARY, metrics=names, usage_of=usage_of)


def test_a_level_counts_by_days_in_each_part_and_is_not_charged_twice() -> None:
    levels = make_invoice(
        PLANS_FILE.parse(CHANGE.encode(), name="f"),
        "t",
        JANUARY,
        metrics=["calls", "old"],
        usage_of=lambda _, part: Decimal(1100 if part.plan.name == "small" else 200),
        is_level=lambda metric: metric == "calls",
    )
    assert [(line.metric, line.billed, line.amount, line.share) for line in levels.lines] == [
        ("calls", Decimal(100), Decimal("0.48"), Fraction(15, 31)),  # all of what is free; (100 · 0.01) · 15 / 31
        ("old", Decimal(1100), Decimal("1100.00"), Fraction(1)),
        ("calls", Decimal(200), Decimal("30.97"), Fraction(16, 31)),  # (100 · 0.5 + 100 · 0.1) · 16 / 31
    ]


def test_a_level_of_which_a_part_has_no_event_is_nothing_there() -> None:
    same = "{currency: EUR, metrics: {seats: {model: per_unit, unit_price: 12}}}"
    sent_once = make_invoice(
        PLANS_FILE.parse(
            f"default_plan: [{{plan: a}}, {{plan: b, from: 2024-01-16}}]\nplans: {{a: {same}, b: {same}}}".encode(),
            name="f",
        ),
        "t",
        JANUARY,
        metrics=["seats"],
        usage_of=lambda _, part: Decimal(10 if part.plan.name == "a" else 0),
        is_level=lambda _: True,
    )
    assert [line.amount for line in sent_once.lines] == [Decimal("58.06"), Decimal("0.00")]  # 10 · 12 · 15 / 31


def test_the_share_of_a_level_is_said_in_days_of_its_month() -> None:
    february = make_invoice(
        PLANS_FILE.parse(CHANGE.replace("2024-01-16", "2024-02-16").encode(), name="f"),
        "t",
        Period(2024, 2),
        metrics=["calls"],
        usage_of=lambda _, __: Decimal(1),
        is_level=lambda metric: metric == "calls",
    )
    shares = [line["share"] for line in invoice_members(february)["lines"] if line["metric"] == "calls"]
    assert shares == [{"days": 15, "of": 29}, {"days": 14, "of": 29}]
    words = ["15 of 29 days", "", "14 of 29 days"]
    assert [share_words(line) for line in february.lines] == words


def plan(members: str, price: str = "") -> str:
    metrics = f", metrics: {{m: {{{price}}}}}" if price else ""
    return f"default_plan: a\nplans: {{a: {{{members}{metrics}}}}}\n"


# ── One plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_metric_of_the_plan_has_a_line_and_the_total_is_all_together() -> None:
    found = invoice(WHOLE, {"api_calls": "12345", "sms": "101", "storage": "1"})
    assert [(line.metric, line.usage, line.billed, line.amount) for line in found.lines] == [
        ("seats", Decimal(0), Decimal(0), Decimal("0.00")),
        ("api_calls", Decimal(12345), Decimal(11345), Decimal("106.72")),  # 100 + 6.725, to the even cent
        ("sms", Decimal(101), Decimal(101), Decimal("8.08")),
        ("storage", Decimal(1), Decimal(1), Decimal("5.00")),
    ]
    assert (str(found.flat_fee), str(found.minimum_adjustment), str(found.total)) == ("49.00", "0.00", "168.80")
    assert (found.plan.name, found.currency, found.timezone, found.split) == ("standard", "EUR", "UTC", False)


def test_usage_that_the_plan_does_not_price_is_shown_and_in_no_amount() -> None:
    found = invoice(WHOLE, {"sms": "1", "fax": "7", "telex": "0"})
    assert [(each.metric, each.usage) for each in found.unpriced] == [("fax", Decimal(7))]
    assert found.total == Decimal("50.10")


@pytest.mark.parametrize(
    ("currency", "amount", "total"),
    [
        ("EUR", "0.125", "0.12"),
        ("EUR", "0.135", "0.14"),
        ("EUR", "0.12500000000001", "0.13"),
        ("JPY", "2.5", "2"),
        ("JPY", "3.5", "4"),
        ("BHD", "0.0005", "0.000"),
        ("BHD", "0.0015", "0.002"),
    ],
)
def test_a_line_is_rounded_once_half_even_to_the_minor_unit(currency: str, amount: str, total: str) -> None:
    found = invoice(plan(f"currency: {currency}", f"model: per_unit, unit_price: {amount}"), {"m": "1"})
    assert (str(found.lines[0].amount), str(found.total)) == (total, total)


def test_the_slices_of_a_line_are_not_rounded_by_themselves() -> None:
    price = "model: graduated, tiers: [{up_to: 1, unit_price: 0.004}, {up_to: 2, unit_price: 0.004}, {unit_price: 0}]"
    found = invoice(plan("currency: EUR", price), {"m": "2"})
    assert [part.amount for part in found.lines[0].slices] == [Decimal("0.004"), Decimal("0.004")]
    assert str(found.total) == "0.01"


@pytest.mark.parametrize(
    ("source", "members", "price", "usage", "adjustment", "total"),
    [
        ("Lago, Spending minimums", "minimum: 100", "0.010", "5000", "50.00", "100.00"),
        ("Lago, scenario specs of minimum spending", "flat_fee: 50, minimum: 100", "10", "3", "20.00", "100.00"),
        ("Lago, Negotiated contract billing", "minimum: 1000", "1", "800", "200.00", "1000.00"),
        ("Lago, Negotiated contract billing", "minimum: 1000", "1", "1300", "0.00", "1300.00"),
        ("nothing used", "minimum: 9.99", "1", "0", "9.99", "9.99"),
        ("the flat fee alone reaches it", "flat_fee: 10, minimum: 10", "1", "0", "0.00", "10.00"),
    ],
)
def test_what_lacks_of_the_minimum_is_added(
    *, source: str, members: str, price: str, usage: str, adjustment: str, total: str
) -> None:
    found = invoice(plan(f"currency: EUR, {members}", f"model: per_unit, unit_price: {price}"), {"m": usage})
    assert (str(found.minimum_adjustment), str(found.total)) == (adjustment, total), source


def test_a_plan_without_metrics_is_a_flat_fee() -> None:
    assert str(invoice(plan("currency: JPY, flat_fee: 5000"), {}).total) == "5000"


# ── A plan that changes ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_change_splits_the_lines_and_prorates_fee_minimum_and_what_is_free_but_no_tier() -> None:
    usage = {("calls", "small"): "500", ("calls", "large"): "150", ("old", "large"): "3"}
    found = invoice(CHANGE, usage)
    assert [(line.part.plan.name, line.metric, line.billed, line.amount) for line in found.lines] == [
        ("small", "calls", Decimal("16.129032258"), Decimal("0.16")),  # 500 less 1000 · 15 / 31
        ("small", "old", Decimal(0), Decimal("0.00")),
        ("large", "calls", Decimal(150), Decimal("55.00")),  # the first tier takes 100, as in a whole month
    ]
    assert [(fees.flat_fee, fees.minimum) for fees in found.fees] == [
        (Decimal("4.84"), Decimal("15.00")),  # 10 · 15 / 31 and 31 · 15 / 31
        (Decimal("51.61"), Decimal("0.00")),
    ]
    assert [(each.metric, each.usage, each.part.plan.name) for each in found.unpriced] == [("old", Decimal(3), "large")]
    assert (str(found.flat_fee), str(found.minimum_adjustment), str(found.total)) == ("56.45", "0.00", "111.61")
    assert (found.plan.name, found.split) == ("large", True)


def test_the_minimum_of_a_changed_month_is_that_of_the_invoice_as_a_whole() -> None:
    change = CHANGE.replace("flat_fee: 100", "flat_fee: 0")
    assert invoice(change, {("calls", "large"): "10"}).minimum_adjustment == Decimal("15.00") - Decimal("4.84") - 5
    assert invoice(change, {("calls", "large"): "100"}).minimum_adjustment == 0


def test_usage_is_asked_for_once_for_each_part_and_metric_that_the_tenant_has() -> None:
    plans = PLANS_FILE.parse(CHANGE.encode(), name="f")
    asked: list[tuple[str, Part]] = []

    def usage_of(metric: str, part: Part) -> Decimal:
        asked.append((metric, part))
        return Decimal(0)

    make_invoice(plans, "t", JANUARY, metrics=["old", "calls", "fax"], usage_of=usage_of)
    both = parts(plans, "t", JANUARY)
    assert asked == needed_usage(both, ["old", "calls", "fax", "calls"])
    assert asked == [(metric, part) for part in both for metric in ("calls", "fax", "old")]


def test_a_day_that_its_zone_skipped_has_no_usage_to_ask_for() -> None:
    starts = "[{plan: a}, {plan: b, from: 2011-12-30}, {plan: a, from: 2011-12-31}]"
    text = f"default_plan: {starts}\ntimezone: Pacific/Apia\nplans: {{a: {{currency: WST}}, b: {{currency: WST}}}}"
    three = parts(PLANS_FILE.parse(text.encode(), name="f"), "t", Period(2011, 12))
    assert [(part.plan.name, part.share.numerator) for part in three] == [("a", 29), ("b", 1), ("a", 1)]
    assert [part.plan.name for _, part in needed_usage(three, ["m"])] == ["a", "a"]


# ── Laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

cents = st.decimals(min_value=0, max_value=1000, places=2)
volumes = st.decimals(min_value=0, max_value=10**6, places=3)


@st.composite
def changing_plans(draw: st.DrawFn) -> str:
    days = sorted(draw(st.sets(st.integers(min_value=2, max_value=31), max_size=3)))
    starts = ", ".join(["{plan: p0}", *(f"{{plan: p{n}, from: 2024-01-{day:02}}}" for n, day in enumerate(days, 1))])
    plans = []
    for number in range(len(days) + 1):
        prices = f"m: {{model: per_unit, free: {draw(cents)}, unit_price: {draw(cents)}}}"
        prices += f", n: {{model: package, package_size: {draw(cents) + 1}, package_price: {draw(cents)}}}"
        members = f"currency: EUR, flat_fee: {draw(cents)}, minimum: {draw(cents)}, metrics: {{{prices}}}"
        plans.append(f"p{number}: {{{members}}}")
    return f"default_plan: [{starts}]\nplans: {{{', '.join(plans)}}}\n"


@given(changing_plans(), volumes, volumes)
def test_the_total_is_its_lines_its_flat_fees_and_the_adjustment(plans: str, m: Decimal, n: Decimal) -> None:
    found = invoice(plans, {"m": str(m), "n": str(n)})
    charged = sum((line.amount for line in found.lines), found.flat_fee)
    assert found.total == charged + found.minimum_adjustment
    assert found.minimum_adjustment == max(sum(fees.minimum for fees in found.fees) - charged, 0)
    amounts = [*(line.amount for line in found.lines), found.flat_fee, found.minimum_adjustment, found.total]
    assert all(amount.as_tuple().exponent == -2 and amount >= 0 for amount in amounts)


@given(cents, st.sets(st.integers(min_value=2, max_value=31), max_size=5))
def test_shares_of_an_amount_miss_it_by_less_than_half_a_cent_each(fee: Decimal, days: set[int]) -> None:
    first_days = [JANUARY.first_day, *(date(2024, 1, day) for day in sorted(days)), JANUARY.next_first_day]
    starts = [f"{{plan: {'ab'[n % 2]}, from: {day}}}" for n, day in enumerate(first_days[1:-1], 1)]
    members = f"{{currency: EUR, flat_fee: {fee}}}"
    plans = f"default_plan: [{', '.join(['{plan: a}', *starts])}]\nplans: {{a: {members}, b: {members}}}"
    found = invoice(plans, {})
    assert abs(found.flat_fee - fee) * 200 <= len(found.fees)
    for fees, begin, end in zip(found.fees, first_days, first_days[1:], strict=False):
        assert abs(Fraction(fees.flat_fee) - Fraction(fee) * ((end - begin) // timedelta(days=1)) / 31) <= Fraction(
            1, 200
        )


@given(cents, st.integers(min_value=2, max_value=31), volumes, volumes)
def test_a_change_to_the_same_prices_changes_nothing_before_rounding(
    price: Decimal, day: int, before: Decimal, after: Decimal
) -> None:
    members = f"{{currency: EUR, metrics: {{m: {{model: per_unit, unit_price: {price}}}}}}}"
    plans = f"plans: {{a: {members}, b: {members}}}\ndefault_plan: "
    whole = invoice(f"{plans}a", {"m": str(before + after)})
    split = invoice(
        f"{plans}[{{plan: a}}, {{plan: b, from: 2024-01-{day:02}}}]", {("m", "a"): str(before), ("m", "b"): str(after)}
    )
    exact = [sum(part.amount for line in each.lines for part in line.slices) for each in (whole, split)]
    assert exact[0] == exact[1]
    assert len(split.lines) == 2


@given(st.fractions(min_value=-(10**6), max_value=10**6), st.integers(min_value=0, max_value=4))
def test_rounding_is_to_the_nearest_and_to_the_even_one_of_two(amount: Fraction, digits: int) -> None:
    found = rounded(amount, digits)
    off = abs(Fraction(found) - amount) * 10**digits
    assert off <= Fraction(1, 2)
    assert off < Fraction(1, 2) or int(found.scaleb(digits)) % 2 == 0
    assert found.as_tuple().exponent == -digits
