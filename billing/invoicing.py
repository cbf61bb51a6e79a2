"""The invoice of a tenant for a month: usage and plans in, lines and a total out. Pure.

    for each part of the period, by its plan:   usage ─► rating ─► rounded once: a line
                                                flat fee · share of the days ─► rounded once
    minimum: the shares of all parts together, each rounded once, against lines + flat fees ─► adjustment
    total = lines + flat fees + adjustment

A level (the maximum or the latest of a time, and no sum) is used throughout its part: its line is rated as of a whole
month, and counts by its part's share of the days, as a flat fee does.

Rounding is half even, to the currency's minor unit. A tenant whose plan does not change has one part, the period.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.plans import Part, Period, Plan, Plans, parts
from billing.rating import EXACT, Slice, rate
from metering.events import VALUE_FRACTION_DIGITS_MAX

UsageOf = Callable[[str, Part], Decimal]
"""The usage (0 or more) of a metric in a part of the period, by event time."""


@dataclass(frozen=True, slots=True)
class Line:
    """One metric in one part. billed: usage less what is free. slices: what it costs, exactly.

    amount: share of the slices, rounded; share: that of the part's days for a level, else 1.
    """

    part: Part
    metric: str
    model: str
    usage: Decimal
    billed: Decimal
    amount: Decimal
    slices: tuple[Slice, ...]
    share: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Unpriced:
    """Usage of a metric that the plan of that part has no price for: in no amount, and shown so that it is seen."""

    part: Part
    metric: str
    usage: Decimal


@dataclass(frozen=True, slots=True)
class Fees:
    """A part's shares of its plan's flat fee and minimum, rounded."""

    part: Part
    flat_fee: Decimal
    minimum: Decimal


@dataclass(frozen=True, slots=True)
class Invoice:
    """All amounts have the digits of the currency's minor unit. plan: that of the period's last day.

    fees: one for each part of the period, in order. minimum_adjustment: what lines and flat fees lack of the minimum.
    """

    tenant_id: str
    period: Period
    timezone: str
    plan: Plan
    lines: tuple[Line, ...]
    fees: tuple[Fees, ...]
    minimum_adjustment: Decimal
    unpriced: tuple[Unpriced, ...]

    @property
    def currency(self) -> str:
        return self.plan.currency

    @property
    def flat_fee(self) -> Decimal:
        return _sum((fees.flat_fee for fees in self.fees), self.plan)

    @property
    def total(self) -> Decimal:
        amounts = [line.amount for line in self.lines]
        return _sum([*amounts, self.flat_fee, self.minimum_adjustment], self.plan)

    @property
    def split(self) -> bool:
        """Whether the plan changes within the period."""
        return len(self.fees) > 1


def needed_usage(period_parts: Iterable[Part], metrics: Iterable[str]) -> list[tuple[str, Part]]:
    """Return each (metric, part) whose usage an invoice asks for, once.

    metrics: those that the tenant has had events of. The others have no usage to be read, priced or not.
    """
    known = sorted(set(metrics))
    # A day that a zone skipped (Apia's 2011-12-30) has no time in which anything could have been used.
    return [(metric, part) for part in period_parts if part.start < part.end for metric in known]


def make_invoice(
    plans: Plans,
    tenant_id: str,
    period: Period,
    *,
    metrics: Iterable[str],
    usage_of: UsageOf,
    is_level: Callable[[str], bool] = lambda _: False,
) -> Invoice:
    """Return the invoice.

    metrics: those that the tenant has had events of; usage_of is asked for what needed_usage returns, and for
    nothing else. A metric that the plan prices has a line without usage, too. is_level: of a metric, see the top.
    """
    period_parts = parts(plans, tenant_id, period)
    usage = {(metric, part): usage_of(metric, part) for metric, part in needed_usage(period_parts, metrics)}
    lines = tuple(
        _line(part, metric, usage.get((metric, part), Decimal(0)), part.share if is_level(metric) else Fraction(1))
        for part in period_parts
        for metric in part.plan.prices
    )
    unpriced = tuple(
        Unpriced(part, metric, amount)
        for (metric, part), amount in usage.items()
        if amount and metric not in part.plan.prices
    )
    fees = tuple(Fees(part, _share(part.plan.flat_fee, part), _share(part.plan.minimum, part)) for part in period_parts)
    plan = period_parts[-1].plan
    minimum = _sum((part.minimum for part in fees), plan)
    charged = _sum([*(line.amount for line in lines), *(part.flat_fee for part in fees)], plan)
    missing = max(EXACT.subtract(minimum, charged), rounded(Fraction(0), plan.minor_digits))
    return Invoice(tenant_id, period, plans.timezone, plan, lines, fees, missing, unpriced)


def rounded(amount: Fraction, digits: int) -> Decimal:
    """Return `amount` with `digits` after the point, half even."""
    units = round(amount * 10**digits)
    return Decimal((int(units < 0), tuple(map(int, str(abs(units)))), -digits))


def _line(part: Part, metric: str, usage: Decimal, share: Fraction) -> Line:
    price = part.plan.prices[metric]
    free_share = part.share / share
    # A part of what is free may have no end (1000 · 15 / 31): it is held as finely as a value can be.
    free = price.free if free_share == 1 else rounded(Fraction(price.free) * free_share, VALUE_FRACTION_DIGITS_MAX)
    rated = rate(price, usage, free=free)
    amount = rounded(Fraction(rated.amount) * share, part.plan.minor_digits)
    return Line(part, metric, price.model, usage, rated.billed, amount, rated.slices, share)


def _share(amount: Decimal, part: Part) -> Decimal:
    return rounded(Fraction(amount) * part.share, part.plan.minor_digits)


def _sum(amounts: Iterable[Decimal], plan: Plan) -> Decimal:
    total = rounded(Fraction(0), plan.minor_digits)
    for amount in amounts:
        total = EXACT.add(total, amount)
    return total
