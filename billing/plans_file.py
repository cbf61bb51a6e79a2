"""PLANS_FILE: read, held to plans.schema.json, and to what no schema can say. Every fault has a line and a column.

The schema lies beside this module, for editors too: docs/plans.md says how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from iso4217 import Currency

from billing.plans import (
    YEAR_MAX,
    YEAR_MIN,
    Graduated,
    Package,
    PerUnit,
    Plan,
    Plans,
    PlanStart,
    Price,
    Tier,
    Volume,
)
from metering.events import VALUE_FRACTION_DIGITS_MAX
from metering.yaml_kinds import RuleReader, YamlKind
from metering.yaml_places import NUMBER_FRACTION_DIGITS_MAX, Node, fraction_digits, shown

_NAMES_SHOWN_MAX = 10
_GUESSES_MAX = 10
"""Faults beside which a name is guessed: each guess looks at all plans, and there may be thousands of both."""


class _Reader(RuleReader[Plans]):
    def made(self) -> Plans:
        top = self.file.value
        timezone = self.timezone()
        plans = {name: self._plan(name, members) for name, members in top["plans"].items()}
        default = self._over_time(("default_plan",), top["default_plan"], plans)
        tenants = {}
        for tenant_id, written in (top.get("tenants") or {}).items():
            self.check_name(("tenants", tenant_id), tenant_id, "tenant_id", of_name=True)
            tenants[tenant_id] = self._over_time(("tenants", tenant_id), written, plans)
        return Plans(timezone, plans, default, tenants)

    # ── A plan ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, name: str, members: dict[str, Any]) -> Plan:
        node: Node = ("plans", name)
        self.check_name(node, name, "plan", of_name=True)
        digits = self._minor_digits((*node, "currency"), members["currency"])
        prices = {}
        for metric, price in members.get("metrics", {}).items():
            at: Node = (*node, "metrics", metric)
            self.check_name(at, metric, "metric", of_name=True)
            prices[metric] = self._price(at, price)
        flat_fee, minimum = (self._fee(node, members, member, digits) for member in ("flat_fee", "minimum"))
        return Plan(name, members["currency"], digits, flat_fee, minimum, prices)

    def _minor_digits(self, node: Node, code: str) -> int:
        try:
            digits = Currency(code).exponent
        except ValueError:
            digits = None
        if digits is None:  # of gold, too, and of the codes for tests
            self.fault(node, f"{shown(code)} stands here; allowed: the ISO 4217 code of a currency, as EUR")
            return NUMBER_FRACTION_DIGITS_MAX  # what else is at fault with its amounts can't be said
        return int(digits)

    def _fee(self, plan: Node, members: Mapping[str, Any], member: str, digits: int) -> Decimal:
        amount = Decimal(members.get(member, 0))
        if fraction_digits(amount) > digits:
            code = members["currency"]
            self.fault((*plan, member), f"{amount:f} stands here; {code} has {digits} digits after the point")
        return amount

    def _price(self, node: Node, members: dict[str, Any]) -> Price:
        free = self._quantity((*node, "free"), members.get("free", 0))
        match members["model"]:
            case "per_unit":
                return PerUnit(free, Decimal(members["unit_price"]))
            case "package":
                size = self._quantity((*node, "package_size"), members["package_size"], above_zero=True)
                return Package(free, size, Decimal(members["package_price"]))
            case model:
                tiers = self._tiers((*node, "tiers"), members["tiers"])
                return Graduated(free, tiers) if model == "graduated" else Volume(free, tiers)

    def _tiers(self, node: Node, written: Sequence[dict[str, Any]]) -> tuple[Tier, ...]:
        tiers = []
        before: Decimal | None = None
        for index, members in enumerate(written):
            up_to = self._up_to((*node, index), members, before, last=index == len(written) - 1)
            before = before if up_to is None else up_to
            prices = (Decimal(members.get(name, 0)) for name in ("unit_price", "flat_price"))
            tiers.append(Tier(up_to, *prices))
        return tuple(tiers)

    def _up_to(self, tier: Node, members: dict[str, Any], before: Decimal | None, *, last: bool) -> Decimal | None:
        node = (*tier, "up_to")
        if "up_to" not in members:
            if not last:
                self.fault(tier, "up_to is missing here; every tier but the last needs it")
            return None
        if last:
            self.fault(node, "the last tier has up_to; allowed: none, since it takes all that is left", of_name=True)
        up_to = self._quantity(node, members["up_to"], above_zero=True)
        if before is not None and up_to <= before:
            self.fault(node, f"{up_to:f} stands here after {before:f}; allowed: more than the tier before")
        return up_to

    def _quantity(self, node: Node, written: str | Decimal | int, *, above_zero: bool = False) -> Decimal:
        quantity = Decimal(written)
        if fraction_digits(quantity) > VALUE_FRACTION_DIGITS_MAX:
            self.fault(node, f"{quantity:f} stands here; a quantity has 9 digits after the point at most")
        if above_zero and not quantity:
            self.fault(node, "0 stands here; allowed: more than 0")
        return quantity

    # ── Which plan, and when ─────────────────────────────────────────────────────────────────────────────────────────

    def _over_time(self, node: Node, written: str | list[Any], plans: Mapping[str, Plan]) -> tuple[PlanStart, ...]:
        if isinstance(written, str):
            return self._starts(node, written, None, plans)
        starts: list[PlanStart] = []
        for index, members in enumerate(written):
            at = (*node, index)
            first_day = self._first_day(at, members, starts, first=index == 0)
            for start in self._starts((*at, "plan"), members["plan"], first_day, plans):
                self._refuse_two_currencies((*at, "plan"), starts, start)
                starts.append(start)
        return tuple(starts)

    def _starts(
        self, node: Node, name: str, first_day: date | None, plans: Mapping[str, Plan]
    ) -> tuple[PlanStart, ...]:
        """Return the plan's start, or nothing when there is no such plan."""
        if name in plans:
            return (PlanStart(plans[name], first_day),)
        near = get_close_matches(name[:64], plans, n=1) if len(self.faults) < _GUESSES_MAX else []
        guess = f"did you mean {near[0]}? " if near else ""
        names = ", ".join([*islice(plans, _NAMES_SHOWN_MAX), *["…"] * (len(plans) > _NAMES_SHOWN_MAX)])
        self.fault(node, f"there is no plan {shown(name)}; {guess}allowed: {names}")
        return ()

    def _first_day(
        self, node: Node, members: Mapping[str, Any], starts: Sequence[PlanStart], *, first: bool
    ) -> date | None:
        text = members.get("from")
        at = (*node, "from")
        if first or text is None:
            if text is not None:
                self.fault(at, "the first plan has from; allowed: none, since it is in force before all others")
            elif not first:
                self.fault(node, "from is missing here; every plan but the first needs it")
            return None
        try:
            day = date.fromisoformat(text)
        except ValueError:
            day = date.max
        if not YEAR_MIN <= day.year <= YEAR_MAX:
            self.fault(at, f"{shown(text)} stands here; allowed: a day as 2024-01-16")
            return None
        before = starts[-1].first_day if starts else None
        if before is not None and day <= before:
            self.fault(at, f"{day} stands here after {before}; allowed: a later day than that of the plan before")
        return day

    def _refuse_two_currencies(self, node: Node, starts: Sequence[PlanStart], start: PlanStart) -> None:
        if not starts or start.first_day is None or start.first_day.day == 1:
            return
        before, after = starts[-1].plan.currency, start.plan.currency
        if before != after:
            self.fault(
                node,
                f"the currency changes from {before} to {after} on {start.first_day}; "
                "allowed: on the first of a month, as an invoice has one",
            )


PLANS_FILE = YamlKind("PLANS_FILE", Path(__file__).with_name("plans.schema.json"), _Reader)
