"""PLANS_FILE: read, held to plans.schema.json, and to what no schema can say. Every fault has a line and a column.

The schema lies beside this module, for editors too: docs/plans.md says how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
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
from metering.errors import InvalidEventError, InvalidSettingError, SetupError
from metering.events import VALUE_FRACTION_DIGITS_MAX, parse_name
from metering.local_time import zone_names
from metering.yaml_files import InvalidFileError, YamlFile, parse_yaml, read_yaml
from metering.yaml_places import NUMBER_FRACTION_DIGITS_MAX, Fault, Node, fraction_digits, shown

SCHEMA_FILE = Path(__file__).with_name("plans.schema.json")
_NAMES_SHOWN_MAX = 10


def read_plans(path: Path) -> Plans:
    """Return the plans in the file at `path`.

    Raises InvalidSettingError, one line that names the file, and the place of the first fault.
    """
    try:
        return _plans(read_yaml(path, schema=_schema()))
    except SetupError as error:
        raise InvalidSettingError("PLANS_FILE", str(path), str(error)) from error


def parse_plans(content: bytes, *, name: str) -> Plans:
    """Return the plans in a file's content. name: what errors call it. Raises InvalidFileError, with all faults."""
    return _plans(parse_yaml(content, name=name, schema=_schema()))


def _schema() -> Mapping[str, Any]:
    schema: Mapping[str, Any] = json.loads(SCHEMA_FILE.read_bytes())
    return schema


def _plans(file: YamlFile) -> Plans:
    reading = _Reading(file)
    plans = reading.plans()
    if reading.faults:
        raise InvalidFileError(file.name, reading.faults)
    return plans


class _Reading:
    """Reads on after a fault, so that all are found; what it returns then is not used."""

    def __init__(self, file: YamlFile) -> None:
        self.faults: list[Fault] = []
        self._file = file

    def plans(self) -> Plans:
        top = self._file.value
        timezone = self._timezone(top.get("timezone", "UTC"))
        plans = {name: self._plan(name, members) for name, members in top["plans"].items()}
        default = self._over_time(("default_plan",), top["default_plan"], plans)
        tenants = {}
        for tenant_id, written in (top.get("tenants") or {}).items():
            self._name(("tenants", tenant_id), tenant_id, "tenant_id")
            tenants[tenant_id] = self._over_time(("tenants", tenant_id), written, plans)
        return Plans(timezone, plans, default, tenants)

    def _fault(self, node: Node, sentence: str, *, of_name: bool = False) -> None:
        self.faults.append(self._file.fault(node, sentence, of_name=of_name))

    def _name(self, node: Node, name: str, field: str) -> None:
        try:
            parse_name(name, field)
        except InvalidEventError as error:
            self._fault(node, f"{shown(name)} stands here; {error.detail}", of_name=True)

    def _timezone(self, name: str) -> str:
        if name not in zone_names():
            self._fault(("timezone",), f"{shown(name)} stands here; allowed: an IANA time zone, as Europe/Berlin")
        return name

    # ── A plan ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, name: str, members: dict[str, Any]) -> Plan:
        node: Node = ("plans", name)
        self._name(node, name, "plan")
        digits = self._minor_digits((*node, "currency"), members["currency"])
        prices = {}
        for metric, price in members.get("metrics", {}).items():
            at: Node = (*node, "metrics", metric)
            self._name(at, metric, "metric")
            prices[metric] = self._price(at, price)
        flat_fee, minimum = (self._fee(node, members, member, digits) for member in ("flat_fee", "minimum"))
        return Plan(name, members["currency"], digits, flat_fee, minimum, prices)

    def _minor_digits(self, node: Node, code: str) -> int:
        try:
            digits = Currency(code).exponent
        except ValueError:
            digits = None
        if digits is None:  # of gold, too, and of the codes for tests
            self._fault(node, f"{shown(code)} stands here; allowed: the ISO 4217 code of a currency, as EUR")
            return NUMBER_FRACTION_DIGITS_MAX  # what else is at fault with its amounts can't be said
        return int(digits)

    def _fee(self, plan: Node, members: Mapping[str, Any], member: str, digits: int) -> Decimal:
        amount = Decimal(members.get(member, 0))
        if fraction_digits(amount) > digits:
            code = members["currency"]
            self._fault((*plan, member), f"{amount:f} stands here; {code} has {digits} digits after the point")
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
                self._fault(tier, "up_to is missing here; every tier but the last needs it")
            return None
        if last:
            self._fault(node, "the last tier has up_to; allowed: none, since it takes all that is left", of_name=True)
        up_to = self._quantity(node, members["up_to"], above_zero=True)
        if before is not None and up_to <= before:
            self._fault(node, f"{up_to:f} stands here after {before:f}; allowed: more than the tier before")
        return up_to

    def _quantity(self, node: Node, written: str | Decimal | int, *, above_zero: bool = False) -> Decimal:
        quantity = Decimal(written)
        if fraction_digits(quantity) > VALUE_FRACTION_DIGITS_MAX:
            self._fault(node, f"{quantity:f} stands here; a quantity has 9 digits after the point at most")
        if above_zero and not quantity:
            self._fault(node, "0 stands here; allowed: more than 0")
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
        near = get_close_matches(name[:64], plans, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        names = ", ".join([*list(plans)[:_NAMES_SHOWN_MAX], *["…"] * (len(plans) > _NAMES_SHOWN_MAX)])
        self._fault(node, f"there is no plan {shown(name)}; {guess}allowed: {names}")
        return ()

    def _first_day(
        self, node: Node, members: Mapping[str, Any], starts: Sequence[PlanStart], *, first: bool
    ) -> date | None:
        text = members.get("from")
        at = (*node, "from")
        if first or text is None:
            if text is not None:
                self._fault(at, "the first plan has from; allowed: none, since it is in force before all others")
            elif not first:
                self._fault(node, "from is missing here; every plan but the first needs it")
            return None
        try:
            day = date.fromisoformat(text)
        except ValueError:
            day = date.max
        if not YEAR_MIN <= day.year <= YEAR_MAX:
            self._fault(at, f"{shown(text)} stands here; allowed: a day as 2024-01-16")
            return None
        before = starts[-1].first_day if starts else None
        if before is not None and day <= before:
            self._fault(at, f"{day} stands here after {before}; allowed: a later day than that of the plan before")
        return day

    def _refuse_two_currencies(self, node: Node, starts: Sequence[PlanStart], start: PlanStart) -> None:
        if not starts or start.first_day is None or start.first_day.day == 1:
            return
        before, after = starts[-1].plan.currency, start.plan.currency
        if before != after:
            self._fault(
                node,
                f"the currency changes from {before} to {after} on {start.first_day}; "
                "allowed: on the first of a month, as an invoice has one",
            )
