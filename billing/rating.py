"""What usage costs by one price, exactly: nothing is rounded here. Pure.

    usage ─► less what is free: billed ─► slices by the price's model ─► their sum

Nothing billed reaches no tier: it costs nothing, and no flat_price either, in every model. More usage never costs
less, but for volume prices, where a tier's price holds for all units: there it is so just when no tier begins below
what the one before it ends with (falls).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation

from billing.plans import Graduated, Package, PerUnit, Price, Tier, Volume

EXACT = Context(prec=128, traps=[Inexact, InvalidOperation])
"""Usage has 38 digits at most (a DynamoDB number), a price 30, so that no product or sum comes near."""

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of what is billed, at one price: amount = quantity · unit_price + flat_price, exactly.

    quantity: units; of a package price, packages. up_to: the end of its tier; None where there is none.
    """

    up_to: Decimal | None
    quantity: Decimal
    unit_price: Decimal
    flat_price: Decimal = _ZERO

    @property
    def amount(self) -> Decimal:
        return EXACT.fma(self.quantity, self.unit_price, self.flat_price)


@dataclass(frozen=True, slots=True)
class Rated:
    """What usage costs. billed: usage less what was free. slices: none when nothing is billed."""

    billed: Decimal
    slices: tuple[Slice, ...]

    @property
    def amount(self) -> Decimal:
        """The sum of the slices, exactly."""
        total = _ZERO
        for part in self.slices:
            total = EXACT.add(total, part.amount)
        return total


def rate(price: Price, usage: Decimal, *, free: Decimal | None = None) -> Rated:
    """Return what `usage` (0 or more) costs. free: in place of the price's own, for a part of a month."""
    billed = max(EXACT.subtract(usage, price.free if free is None else free), _ZERO)
    if not billed:
        return Rated(_ZERO, ())
    return Rated(billed, _slices(price, billed))


def falls(price: Price) -> list[Decimal]:
    """Return the ends of the tiers beyond which more usage costs less than at the end itself.

    Empty: the price never falls.
    """
    if not isinstance(price, Volume):
        return []
    return [
        tier.up_to
        for tier, following in zip(price.tiers, price.tiers[1:], strict=False)
        if tier.up_to is not None and _at(tier.up_to, following) < _at(tier.up_to, tier)
    ]


def _slices(price: Price, billed: Decimal) -> tuple[Slice, ...]:
    match price:
        case PerUnit():
            return (Slice(None, billed, price.unit_price),)
        case Graduated():
            return _graduated(price.tiers, billed)
        case Volume():
            tier = next(tier for tier in price.tiers if tier.up_to is None or billed <= tier.up_to)
            return (Slice(tier.up_to, billed, tier.unit_price, tier.flat_price),)
        case Package():
            return (Slice(None, _packages(billed, price.package_size), price.package_price),)


def _at(quantity: Decimal, tier: Tier) -> Decimal:
    return EXACT.fma(quantity, tier.unit_price, tier.flat_price)


def _graduated(tiers: tuple[Tier, ...], billed: Decimal) -> tuple[Slice, ...]:
    slices = []
    begin = _ZERO
    for tier in tiers:
        end = billed if tier.up_to is None else min(billed, tier.up_to)
        slices.append(Slice(tier.up_to, EXACT.subtract(end, begin), tier.unit_price, tier.flat_price))
        if end == billed:
            break
        begin = end
    return tuple(slices)


def _packages(billed: Decimal, size: Decimal) -> Decimal:
    full, rest = EXACT.divmod(billed, size)
    return EXACT.add(full, 1) if rest else full
