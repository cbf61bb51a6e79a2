"""Price plans: what a unit costs, which plan a tenant has on which day, and the parts of a month that it makes. Pure.

Where it sits: plans_file reads PLANS_FILE into these, rating and invoicing reckon with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction

from metering.local_time import first_moment, local, zone_named

YEAR_MIN = 1970
YEAR_MAX = 9998
"""A month's end, and its midnight in any zone, must be a time that datetime can hold."""
PERIODS_ALLOWED = f"a month from {YEAR_MIN}-01 to {YEAR_MAX}-12, as 2024-01"

_PERIOD = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tier:
    """Billed units up to `up_to`, inclusive; None: all that are left. flat_price: once, when the tier is reached."""

    up_to: Decimal | None
    unit_price: Decimal
    flat_price: Decimal


@dataclass(frozen=True, slots=True)
class PerUnit:
    """Every billed unit costs the same. free: usage that is not billed, of each month."""

    free: Decimal
    unit_price: Decimal

    model = "per_unit"


@dataclass(frozen=True, slots=True)
class Graduated:
    """The units within each tier cost that tier's price. tiers: ascending, the last without an end."""

    free: Decimal
    tiers: tuple[Tier, ...]

    model = "graduated"


@dataclass(frozen=True, slots=True)
class Volume:
    """All billed units cost the price of the tier that they reach. tiers: as of Graduated."""

    free: Decimal
    tiers: tuple[Tier, ...]

    model = "volume"


@dataclass(frozen=True, slots=True)
class Package:
    """Billed units are sold in packages of package_size (above 0); one that is begun costs as much as a full one."""

    free: Decimal
    package_size: Decimal
    package_price: Decimal

    model = "package"


Price = PerUnit | Graduated | Volume | Package


@dataclass(frozen=True, slots=True)
class Plan:
    """A price list. currency: ISO 4217. minor_digits: after its point (EUR 2, JPY 0). flat_fee, minimum: of a month."""

    name: str
    currency: str
    minor_digits: int
    flat_fee: Decimal
    minimum: Decimal
    prices: Mapping[str, Price] = field(hash=False)  # a mapping has no hash, and the name tells plans apart


@dataclass(frozen=True, slots=True)
class PlanStart:
    """A plan and its first day; None: since ever."""

    plan: Plan
    first_day: date | None


@dataclass(frozen=True, slots=True)
class Plans:
    """All plans of a file. timezone: in which its months and days are meant."""

    timezone: str
    plans: Mapping[str, Plan]
    default: tuple[PlanStart, ...]
    tenants: Mapping[str, tuple[PlanStart, ...]]

    def of(self, tenant_id: str) -> tuple[PlanStart, ...]:
        """Return the tenant's plans over time, ascending; those of the default when the file does not name it."""
        return self.tenants.get(tenant_id, self.default)


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """A month, for which there is an invoice."""

    year: int
    month: int

    @property
    def first_day(self) -> date:
        return date(self.year, self.month, 1)

    @property
    def next_first_day(self) -> date:
        return date(self.year + self.month // 12, self.month % 12 + 1, 1)

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"


@dataclass(frozen=True, slots=True)
class Part:
    """The days of a period in which one plan was in force: [first_day, end_day), and the same as [start, end) in UTC.

    share: of the period's days. whole: whether it is the period.
    """

    plan: Plan
    first_day: date
    end_day: date
    start: datetime
    end: datetime
    share: Fraction

    @property
    def days(self) -> int:
        return (self.end_day - self.first_day).days


def parse_period(text: str) -> Period | None:
    """Return the month that `2024-01` means, None for what is no month: PERIODS_ALLOWED says which are."""
    match = _PERIOD.match(text)
    if match is None or not YEAR_MIN <= int(match[1]) <= YEAR_MAX:
        return None
    return Period(int(match[1]), int(match[2]))


def period_at(moment: datetime, timezone: str) -> Period:
    """Return the month in which an aware time lies, in that zone."""
    here = local(moment, zone_named(timezone))
    return Period(here.year, here.month)


def parts(plans: Plans, tenant_id: str, period: Period) -> tuple[Part, ...]:
    """Return the parts of the period, in order and without a gap: one, or several when the plan changes in between.

    A tenant's currency is the same in all of them: plans_file refuses a change of currency on any day but the first
    of a month.
    """
    zone = zone_named(plans.timezone)
    first, end = period.first_day, period.next_first_day
    spans = _spans(plans.of(tenant_id), first, end)
    return tuple(
        Part(
            plan,
            begin,
            until,
            first_moment(begin, zone),
            first_moment(until, zone),
            Fraction((until - begin).days, (end - first).days),
        )
        for plan, begin, until in spans
    )


def _spans(starts: Sequence[PlanStart], first: date, end: date) -> list[tuple[Plan, date, date]]:
    spans: list[tuple[Plan, date, date]] = []
    for index, start in enumerate(starts):
        begin = max(first, start.first_day or first)
        following = starts[index + 1].first_day if index + 1 < len(starts) else None
        until = min(end, following or end)
        if begin >= until:
            continue
        if spans and spans[-1][0] == start.plan:  # named again: no change
            begin = spans.pop()[1]
        spans.append((start.plan, begin, until))
    return spans
