"""What usage costs by one price: worked examples of others, our own, and the laws that hold for all prices."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing.plans import Graduated, Package, PerUnit, Price, Tier, Volume
from billing.rating import falls, rate

FREE = Decimal(0)
SMALLEST = Decimal("1e-9")


def tier(up_to: str | None, unit_price: str = "0", flat_price: str = "0") -> Tier:
    return Tier(None if up_to is None else Decimal(up_to), Decimal(unit_price), Decimal(flat_price))


def amount(price: Price, usage: str | Decimal) -> Decimal:
    return rate(price, Decimal(usage)).amount


# ── Worked examples ──────────────────────────────────────────────────────────────────────────────────────────────────

FONTS = (tier("5", "7"), tier("10", "6.5"), tier(None, "6"))
CALLS = (
    tier("10000", "0.0010", "10"),
    tier("50000", "0.0008", "10"),
    tier("100000", "0.0006", "10"),
    tier(None, "0.0004", "10"),
)
API = (tier("100", "1"), tier("200", "0.50"), tier(None, "0.10"))


@pytest.mark.parametrize(
    ("source", "price", "usage", "costs"),
    [
        ("Stripe, Set up tiered pricing: volume-based", Volume(FREE, FONTS), "1", "7"),
        ("Stripe, Set up tiered pricing: volume-based", Volume(FREE, FONTS), "5", "35"),
        ("Stripe, Set up tiered pricing: volume-based", Volume(FREE, FONTS), "6", "39"),
        ("Stripe, Set up tiered pricing: volume-based", Volume(FREE, FONTS), "20", "120"),
        ("Stripe, Set up tiered pricing: volume-based", Volume(FREE, FONTS), "25", "150"),
        ("Stripe, Set up tiered pricing: graduated", Graduated(FREE, FONTS), "5", "35"),
        ("Stripe, Quantity transformation", Package(FREE, Decimal(5), Decimal(10)), "1", "10"),
        ("Stripe, Quantity transformation", Package(FREE, Decimal(5), Decimal(10)), "3", "10"),
        ("Stripe, Quantity transformation", Package(FREE, Decimal(5), Decimal(10)), "5", "10"),
        ("Stripe, Quantity transformation", Package(FREE, Decimal(5), Decimal(10)), "6", "20"),
        ("Stripe, Quantity transformation", Package(FREE, Decimal(5), Decimal(10)), "7", "20"),
        ("Stripe, Transform quantities", Package(FREE, Decimal(60), Decimal(10)), "150", "30"),
        ("Lago, Charges: standard", PerUnit(FREE, Decimal("0.05")), "1000", "50"),
        ("Lago, Charge models: volume", Volume(FREE, CALLS), "65000", "49"),
        ("Lago, Charge models: package", Package(Decimal(100), Decimal(100), Decimal(5)), "201", "10"),
        # The prices of the page, by the rule of the page; the sums are reckoned by hand.
        ("Stripe, Set up tiered pricing: graduated", Graduated(FREE, FONTS), "6", "41.5"),
        ("Stripe, Set up tiered pricing: graduated", Graduated(FREE, FONTS), "20", "127.5"),
        ("Stripe, Set up tiered pricing: graduated", Graduated(FREE, FONTS), "25", "157.5"),
        ("Lago, Charge models: graduated", Graduated(FREE, API), "100", "100"),
        ("Lago, Charge models: graduated", Graduated(FREE, API), "200", "150"),
        ("Lago, Charge models: graduated", Graduated(FREE, API), "1200", "250"),
    ],
)
def test_worked_examples_of_others(source: str, price: Price, usage: str, costs: str) -> None:
    assert amount(price, usage) == Decimal(costs), source


SMS = (tier("100", "0.10", "1.00"), tier(None, "0.08"))


@pytest.mark.parametrize(
    ("price", "usage", "billed", "costs"),
    [
        (Graduated(Decimal(1000), (tier("10000", "0.01"), tier(None, "0.005"))), "11000", "10000", "100"),
        (Graduated(Decimal(1000), (tier("10000", "0.01"), tier(None, "0.005"))), "11001", "10001", "100.005"),
        (Graduated(FREE, (tier("10", "1", "5"), tier(None, "0", "3"))), "10", "10", "15"),
        (Graduated(FREE, (tier("10", "1", "5"), tier(None, "0", "3"))), "10.000000001", "10.000000001", "18"),
        (Volume(FREE, SMS), "100", "100", "11"),
        (Volume(FREE, SMS), "100.5", "100.5", "8.04"),
        (Volume(Decimal(50), SMS), "150", "100", "11"),
        (Package(FREE, Decimal(100), Decimal(5)), "100", "100", "5"),
        (Package(FREE, Decimal(100), Decimal(5)), "100.000000001", "100.000000001", "10"),
        (Package(Decimal("0.5"), Decimal("0.25"), Decimal(1)), "1.1", "0.6", "3"),
        (PerUnit(Decimal(10), Decimal("0.000000000000001")), "11", "1", "0.000000000000001"),
    ],
)
def test_what_is_free_comes_off_first_and_a_tier_ends_with_its_up_to(
    price: Price, usage: str, billed: str, costs: str
) -> None:
    rated = rate(price, Decimal(usage))
    assert (rated.billed, rated.amount) == (Decimal(billed), Decimal(costs))


@pytest.mark.parametrize(
    "price",
    [
        PerUnit(Decimal(5), Decimal(1)),
        Graduated(Decimal(5), (tier(None, "1", "9"),)),
        Volume(Decimal(5), (tier(None, "1", "9"),)),
        Package(Decimal(5), Decimal(1), Decimal(9)),
    ],
    ids=lambda price: price.model,
)
@pytest.mark.parametrize("usage", ["0", "4.999999999", "5"])
def test_nothing_billed_costs_nothing_not_even_a_flat_price(price: Price, usage: str) -> None:
    assert rate(price, Decimal(usage)) == rate(price, Decimal(0))
    assert (rate(price, Decimal(usage)).billed, rate(price, Decimal(usage)).slices) == (0, ())


def test_the_largest_usage_at_the_finest_price_is_exact() -> None:
    usage, price = Decimal("9" * 29 + "." + "9" * 9), Decimal("9" * 15 + "." + "9" * 15)
    assert Fraction(amount(PerUnit(FREE, price), usage)) == Fraction(usage) * Fraction(price)


# ── Laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

quantities = st.decimals(min_value=0, max_value=10**15 - 1, places=9)
prices = st.decimals(min_value=0, max_value=1000, places=2)
small = st.decimals(min_value=0, max_value=300, places=2)


@st.composite
def tiers(draw: st.DrawFn) -> tuple[Tier, ...]:
    ends = sorted(draw(st.sets(st.decimals(min_value=Decimal("0.01"), max_value=200, places=2), max_size=4)))
    return tuple(Tier(end, draw(prices), draw(prices)) for end in [*ends, None])


any_price: st.SearchStrategy[Price] = st.one_of(
    st.builds(PerUnit, small, prices),
    st.builds(Graduated, small, tiers()),
    st.builds(Volume, small, tiers()),
    st.builds(Package, small, st.decimals(min_value=Decimal("0.01"), max_value=50, places=2), prices),
)


@given(any_price, small | quantities, small | quantities)
def test_more_usage_never_costs_less_unless_a_volume_price_falls(price: Price, one: Decimal, other: Decimal) -> None:
    less, more = sorted((one, other))
    if not falls(price):
        assert amount(price, less) <= amount(price, more)


@given(tiers())
def test_a_volume_price_falls_exactly_beyond_the_ends_that_are_named(volume_tiers: tuple[Tier, ...]) -> None:
    price = Volume(FREE, volume_tiers)
    ends = [end for each in volume_tiers if (end := each.up_to) is not None]
    assert falls(price) == [end for end in ends if amount(price, end) > amount(price, end + SMALLEST)]


@given(any_price)
def test_only_volume_prices_fall(price: Price) -> None:
    assert isinstance(price, Volume) or falls(price) == []


@settings(max_examples=40)
@given(tiers(), st.integers(min_value=1, max_value=25_000))
def test_a_graduated_amount_is_the_sum_over_its_smallest_units(graduated: tuple[Tier, ...], hundredths: int) -> None:
    ends = [hundredths if each.up_to is None else int(each.up_to * 100) for each in graduated]
    units = Counter(next(i for i, end in enumerate(ends) if unit <= end) for unit in range(1, hundredths + 1))
    prices_in = [(Fraction(each.unit_price), Fraction(each.flat_price)) for each in graduated]
    rated = rate(Graduated(FREE, graduated), Decimal(hundredths) / 100)
    assert rated.amount == sum(count * prices_in[i][0] / 100 + prices_in[i][1] for i, count in units.items())
    assert [part.quantity * 100 for part in rated.slices] == [units[i] for i in sorted(units)]


@given(any_price, small)
def test_the_slices_are_all_that_is_billed(price: Price, usage: Decimal) -> None:
    rated = rate(price, usage)
    billed = sum((part.quantity for part in rated.slices), Decimal(0))
    if isinstance(price, Package):
        assert billed * price.package_size - price.package_size < rated.billed <= billed * price.package_size
    else:
        assert billed == rated.billed == max(usage - price.free, 0)


@given(st.builds(PerUnit, st.just(FREE), st.decimals(min_value=0, max_value=10**6, places=15)), quantities, quantities)
def test_splitting_a_period_changes_nothing_for_per_unit_prices(price: PerUnit, one: Decimal, other: Decimal) -> None:
    together = Fraction(amount(price, one + other))
    assert Fraction(amount(price, one)) + Fraction(amount(price, other)) == together


@given(small, st.decimals(min_value=SMALLEST, max_value=1000, places=9), prices, quantities)
def test_a_package_that_is_begun_is_whole(free: Decimal, size: Decimal, cost: Decimal, usage: Decimal) -> None:
    billed = max(Fraction(usage) - Fraction(free), Fraction(0))
    expected = ceil(billed / Fraction(size)) * Fraction(cost)
    assert Fraction(amount(Package(free, size, cost), usage)) == expected


@given(any_price, small, small)
@example(PerUnit(Decimal(5), Decimal(1)), Decimal(7), Decimal(0))
def test_what_is_free_for_a_part_takes_the_place_of_the_price_s_own(
    price: Price, usage: Decimal, free: Decimal
) -> None:
    assert rate(price, usage, free=free) == rate(replace(price, free=free), usage)
