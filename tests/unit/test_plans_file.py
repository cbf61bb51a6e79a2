"""PLANS_FILE: what it means, and the place and the sentence of everything that can be wrong with it."""

from __future__ import annotations

import json
import time
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from billing.plans import Graduated, Package, PerUnit, Plan, PlanStart, Tier, Volume
from billing.plans_file import PLANS_FILE
from metering.errors import InvalidSettingError
from metering.yaml_files import FAULTS_MAX, InvalidFileError
from tests.unit.plan_files import WHOLE

PLAN = "default_plan: a\nplans:\n  a:\n    currency: EUR\n"


def faults(marked: str) -> list[str]:
    """The sentences that are reported of a text. Each `^` in it marks the place of one, and is taken out before."""
    text = marked.replace("^", "")
    with pytest.raises(InvalidFileError) as caught:
        PLANS_FILE.parse(text.encode(), name="f")
    places = []
    for number, line in enumerate(marked.splitlines(), 1):
        pieces = line.split("^")
        places += [(number, len("".join(pieces[:count])) + 1) for count in range(1, len(pieces))]
    assert [(fault.line, fault.column) for fault in caught.value.faults] == places
    return [fault.sentence for fault in caught.value.faults]


def tier(up_to: str | None, unit_price: str, flat_price: str = "0") -> Tier:
    return Tier(None if up_to is None else Decimal(up_to), Decimal(unit_price), Decimal(flat_price))


# ── What a file means ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_says_what_each_plan_costs_and_who_has_it() -> None:
    found = PLANS_FILE.parse(WHOLE.encode(), name="f")
    zero = Decimal(0)
    standard = Plan(
        "standard",
        "EUR",
        2,
        Decimal(49),
        zero,
        {
            "seats": PerUnit(zero, Decimal(12)),
            "api_calls": Graduated(Decimal(1000), (tier("10000", "0.01"), tier(None, "0.005"))),
            "sms": Volume(zero, (tier("100", "0.10", "1.00"), tier(None, "0.08"))),
            "storage": Package(zero, Decimal(100), Decimal(5)),
        },
    )
    enterprise = Plan("enterprise", "JPY", 0, zero, zero, {})
    assert found.plans == {"standard": standard, "enterprise": enterprise}
    assert found.default == (PlanStart(standard, None),)
    assert found.tenants == {"acme": (PlanStart(enterprise, None),)}
    assert found.timezone == "UTC"
    assert list(found.plans["standard"].prices) == ["seats", "api_calls", "sms", "storage"]


def test_plans_over_time_have_their_first_days() -> None:
    text = "plans: {a: {currency: EUR}, b: {currency: EUR}}\ntenants: {t: [{plan: a}, {plan: b, from: 2024-01-16}]}\n"
    found = PLANS_FILE.parse(f"{text}default_plan: [{{plan: b}}, {{plan: a, from: '2020-02-29'}}]".encode(), name="f")
    assert [(start.plan.name, start.first_day) for start in found.of("t")] == [("a", None), ("b", date(2024, 1, 16))]
    assert [start.first_day for start in found.default] == [None, date(2020, 2, 29)]


def test_numbers_and_texts_of_digits_mean_the_same_amount() -> None:
    price = 'metrics: {m: {model: per_unit, free: "1.5", unit_price: 0.10}, n: {model: per_unit, unit_price: "0.10"}}'
    prices = PLANS_FILE.parse(f"{PLAN}    {price}\n".encode(), name="f").plans["a"].prices
    assert (prices["m"], prices["n"]) == (
        PerUnit(Decimal("1.5"), Decimal("0.1")),
        PerUnit(Decimal(0), Decimal("0.1")),
    )


def test_names_that_look_like_something_else_are_names() -> None:
    metrics = "    metrics: {on: {model: per_unit, unit_price: 1}}"
    found = PLANS_FILE.parse(f"{PLAN}{metrics}\ntenants: {{no: a, 12:30: a, 1e3: a}}".encode(), name="f")
    assert list(found.tenants) == ["no", "12:30", "1e3"]
    assert list(found.plans["a"].prices) == ["on"]


@pytest.mark.parametrize(("code", "digits"), [("EUR", 2), ("JPY", 0), ("BHD", 3), ("CLF", 4), ("RSD", 2), ("LBP", 2)])
def test_a_currency_has_the_minor_unit_of_iso_4217(code: str, digits: int) -> None:
    plan = PLANS_FILE.parse(PLAN.replace("EUR", code).encode(), name="f").plans["a"]
    assert (plan.currency, plan.minor_digits) == (code, digits)


def test_ten_thousand_tenants_are_read_in_the_time_of_a_start() -> None:
    tenants = "".join(f"  tenant-{n}: [{{plan: a}}, {{plan: a, from: 2024-01-16}}]\n" for n in range(10_000))
    started = time.process_time()
    assert len(PLANS_FILE.parse(f"{PLAN}tenants:\n{tenants}".encode(), name="f").tenants) == 10_000
    assert time.process_time() - started < 30  # seconds; about 1, and what is quadratic would take minutes


def test_thousands_of_names_that_no_plan_has_are_found_in_that_time_too() -> None:
    tenants = "".join(f"  tenant-{n}: plan-of-{n}-x\n" for n in range(3_000))
    plans = "".join(f"  plan-of-{n}: {{currency: EUR}}\n" for n in range(3_000))
    started = time.process_time()
    with pytest.raises(InvalidFileError) as caught:
        PLANS_FILE.parse(f"default_plan: plan-of-0\ntenants:\n{tenants}plans:\n{plans}".encode(), name="f")
    assert time.process_time() - started < 30  # seconds; about 1, and a guess for each name took more than 60
    assert len(caught.value.faults) == FAULTS_MAX
    assert "there is no plan 'plan-of-0-x'; did you mean plan-of-0? allowed: plan-of-0, " in str(caught.value)


# ── What is wrong, and where ─────────────────────────────────────────────────────────────────────────────────────────

NAME = "must be 1 to 128 letters, digits and . _ - : @, nothing else"
OVER_TIME = "allowed: the name of a plan, or a list as [{plan: standard}, {plan: enterprise, from: 2024-01-16}]"
ZONE = "stands here; allowed: an IANA time zone, as Europe/Berlin"
CURRENCY = "stands here; allowed: the ISO 4217 code of a currency, as EUR"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "default_plan: a\nplans: ^{}\n",
            "a mapping stands here; allowed: a mapping of one plan or more by their names",
        ),
        ("^plans: {a: {currency: EUR}}\n", "missing here: default_plan"),
        (
            f"{PLAN}^plan: b\n",
            "there is no member 'plan' here; did you mean plans? allowed: timezone, default_plan, tenants, plans",
        ),
        (
            f"{PLAN}    ^flat_fees: 1\n",
            "there is no member 'flat_fees' here; did you mean flat_fee? allowed: currency, flat_fee, minimum, metrics",
        ),
        (PLAN.replace(": a", ": ^b", 1), "there is no plan 'b'; allowed: a"),
        (PLAN.replace(": a", ": ^aa", 1), "there is no plan 'aa'; did you mean a? allowed: a"),
        (f"{PLAN}tenants: {{t: ^1}}\n", f"the number 1 stands here; {OVER_TIME}"),
        (f"{PLAN}tenants: {{^t u: a}}\n", f"'t u' stands here; tenant_id {NAME}"),
        (f"{PLAN}tenants: {{^{'t' * 129}: a}}\n", f"'{'t' * 64}…' stands here; tenant_id {NAME}"),
        (f"{PLAN}  ^<b>: {{currency: EUR}}\n", f"'<b>' stands here; plan {NAME}"),
        (
            f"{PLAN}    metrics: {{^a/b: {{model: per_unit, unit_price: 1}}}}\n",
            f"'a/b' stands here; metric {NAME}",
        ),
        (f"{PLAN}timezone: ^Europe/Berlinn\n", f"'Europe/Berlinn' {ZONE}"),
        (f"{PLAN}timezone: ^Europe\n", f"'Europe' {ZONE}"),
        (f"{PLAN}timezone: ^/etc/passwd\n", f"'/etc/passwd' {ZONE}"),
        (f"{PLAN}timezone: ^+01:00\n", f"'+01:00' {ZONE}"),
        (PLAN.replace("EUR", "^EURO"), f"'EURO' {CURRENCY}"),
        (PLAN.replace("EUR", "^eur") + "    flat_fee: 1.005\n", f"'eur' {CURRENCY}"),
        (PLAN.replace("EUR", "^XAU"), f"'XAU' {CURRENCY}"),
        (PLAN.replace("EUR", "^HRK"), f"'HRK' {CURRENCY}"),
        (f"{PLAN}    flat_fee: ^1.005\n", "1.005 stands here; EUR has 2 digits after the point"),
        (PLAN.replace("EUR", "JPY") + "    minimum: ^0.5\n", "0.5 stands here; JPY has 0 digits after the point"),
    ],
)
def test_a_fault_of_the_file_has_its_place(text: str, sentence: str) -> None:
    assert faults(text) == [sentence]


AMOUNT = (
    'stands here; allowed: an amount of 0 or more, as "12.50", with at most 15 digits before the point and 15 after it'
)
QUANTITY = (
    "stands here; allowed: a quantity of 0 or more, as 1000, with at most 15 digits before the point and 9 after it"
)


@pytest.mark.parametrize(
    ("price", "sentence"),
    [
        ("m: {model: ^tiered}", "'tiered' stands here; allowed: per_unit, graduated, volume, package"),
        ("^m: {unit_price: 1}", "missing here: model"),
        ("^m: {model: per_unit}", "missing here: unit_price"),
        (
            "m: {model: per_unit, unit_price: 1, ^unit_prize: 1}",
            "there is no member 'unit_prize' here; did you mean unit_price? allowed: model, free, unit_price",
        ),
        ("m: {model: per_unit, unit_price: ^-1}", f"the number -1 {AMOUNT}"),
        ("m: {model: per_unit, unit_price: ^'-1'}", f"'-1' {AMOUNT}"),
        ("m: {model: per_unit, unit_price: ^'1e3'}", f"'1e3' {AMOUNT}"),
        ("m: {model: per_unit, unit_price: ^'٣'}", f"'٣' {AMOUNT}"),
        ("m: {model: per_unit, unit_price: ^1_000}", f"'1_000' {AMOUNT}"),
        ("m: {model: per_unit, unit_price: ^true}", f"true {AMOUNT}"),
        (f"m: {{model: per_unit, unit_price: ^'1{'0' * 15}'}}", f"'1{'0' * 15}' {AMOUNT}"),
        ("m: {model: per_unit, unit_price: 1, free: ^-5}", f"the number -5 {QUANTITY}"),
        (
            "m: {model: per_unit, unit_price: 1, free: ^0.0000000001}",
            "0.0000000001 stands here; a quantity has 9 digits after the point at most",
        ),
        ("m: {model: package, package_size: ^0, package_price: 1}", "0 stands here; allowed: more than 0"),
        ("m: {model: package, package_size: ^'0.0', package_price: 1}", "0 stands here; allowed: more than 0"),
        ("^m: {model: package, package_size: 1}", "missing here: package_price"),
        ("m: {model: volume, tiers: ^[]}", "a list stands here; allowed: a list of one tier or more"),
        ("^m: {model: volume}", "missing here: tiers"),
        (
            "m: {model: graduated, tiers: [^{up_to: 5}]}",
            "a mapping stands here; allowed: a tier with unit_price, flat_price or both, and up_to in all but the last",
        ),
        (
            "m: {model: graduated, tiers: [{^up_to: 5, unit_price: 1}]}",
            "the last tier has up_to; allowed: none, since it takes all that is left",
        ),
        (
            "m: {model: volume, tiers: [^{unit_price: 1}, {unit_price: 2}]}",
            "up_to is missing here; every tier but the last needs it",
        ),
        (
            "m: {model: volume, tiers: [{up_to: ^0, unit_price: 1}, {unit_price: 2}]}",
            "0 stands here; allowed: more than 0",
        ),
        (
            "m: {model: volume, tiers: [{up_to: 5, unit_price: 1}, {up_to: ^'5.0', unit_price: 1}, {unit_price: 2}]}",
            "5.0 stands here after 5; allowed: more than the tier before",
        ),
        (
            "m: {model: graduated, tiers: [{up_to: 5, unit_price: 1}, {up_to: ^3, unit_price: 1}, {unit_price: 2}]}",
            "3 stands here after 5; allowed: more than the tier before",
        ),
    ],
)
def test_a_fault_of_a_price_has_its_place(price: str, sentence: str) -> None:
    assert faults(f"{PLAN}    metrics:\n      {price}\n") == [sentence]


TWO_PLANS = "plans: {a: {currency: EUR}, b: {currency: USD}}\ndefault_plan: a\ntenants:\n  t: "
DAY = "stands here; allowed: a day as 2024-01-16"
FIRST_OF_MONTH = "allowed: on the first of a month, as an invoice has one"
FIRST_DAY = "stands here; allowed: the plan's first day in the file's timezone, as 2024-01-16"


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("^[]", f"a list stands here; {OVER_TIME}"),
        (
            "[^a]",
            "'a' stands here; allowed: a plan, and its first day in all but the first, as {plan: a, from: 2024-01-16}",
        ),
        (
            "[{plan: a, from: ^2024-01-16}]",
            "the first plan has from; allowed: none, since it is in force before all others",
        ),
        ("[{plan: a}, ^{plan: a}]", "from is missing here; every plan but the first needs it"),
        ("[{plan: a}, {plan: ^c, from: 2024-01-01}]", "there is no plan 'c'; allowed: a, b"),
        ("[{plan: a}, {plan: a, from: ^2024-02-30}]", f"'2024-02-30' {DAY}"),
        ("[{plan: a}, {plan: a, from: ^9999-01-01}]", f"'9999-01-01' {DAY}"),
        ("[{plan: a}, {plan: a, from: ^1969-12-31}]", f"'1969-12-31' {DAY}"),
        ("[{plan: a}, {plan: a, from: ^2024-W03-2}]", f"'2024-W03-2' {FIRST_DAY}"),
        ("[{plan: a}, {plan: a, from: ^2024-01-16T00:00:00Z}]", f"'2024-01-16T00:00:00Z' {FIRST_DAY}"),
        (
            "[{plan: a}, {plan: a, from: 2024-01-16}, {plan: a, from: ^2024-01-16}]",
            "2024-01-16 stands here after 2024-01-16; allowed: a later day than that of the plan before",
        ),
        (
            "[{plan: a}, {plan: ^b, from: 2024-01-16}]",
            f"the currency changes from EUR to USD on 2024-01-16; {FIRST_OF_MONTH}",
        ),
        (
            "[{plan: a}, {plan: ^b, from: 2024-01-02}]",
            f"the currency changes from EUR to USD on 2024-01-02; {FIRST_OF_MONTH}",
        ),
        (
            "[{plan: b}, {plan: a, from: 2024-01-01}, {plan: ^b, from: 2024-01-31}]",
            f"the currency changes from EUR to USD on 2024-01-31; {FIRST_OF_MONTH}",
        ),
    ],
)
def test_a_fault_of_plans_over_time_has_its_place(written: str, sentence: str) -> None:
    assert faults(f"{TWO_PLANS}{written}\n") == [sentence]


@pytest.mark.parametrize("day", ["1970-01-01", "9998-12-31"])
def test_a_plan_may_begin_on_any_day_of_a_period_that_there_is(day: str) -> None:
    (_, start) = PLANS_FILE.parse(f"{TWO_PLANS}[{{plan: a}}, {{plan: a, from: {day}}}]\n".encode(), name="f").of("t")
    assert str(start.first_day) == day


def test_the_currency_may_change_on_the_first_day_of_a_month() -> None:
    text = f"{TWO_PLANS}[{{plan: a}}, {{plan: b, from: 2024-02-01}}]\n"
    assert [start.plan.currency for start in PLANS_FILE.parse(text.encode(), name="f").of("t")] == ["EUR", "USD"]


def test_a_tier_is_held_to_the_last_end_before_it() -> None:
    tiers = "[{up_to: 5, unit_price: 1}, ^{unit_price: 1}, {up_to: ^3, unit_price: 1}, {unit_price: 2}]"
    assert faults(f"{PLAN}    metrics: {{m: {{model: graduated, tiers: {tiers}}}}}\n") == [
        "up_to is missing here; every tier but the last needs it",
        "3 stands here after 5; allowed: more than the tier before",
    ]


def test_all_faults_of_the_rules_are_reported_by_place() -> None:
    text = "default_plan: ^x\ntimezone: ^y\ntenants: {^t u: ^z}\nplans: {p: {currency: ^QQQ}}\n"
    assert len(faults(text)) == text.count("^")


# ── The file of the setting ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_cannot_be_used_is_one_line_of_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    with pytest.raises(InvalidSettingError, match=r"PLANS_FILE='.*plans.yaml' can't be used: .*: No such file"):
        PLANS_FILE.read(path)
    path.write_text(PLAN.replace("EUR", "EURO"))
    with pytest.raises(InvalidSettingError, match=r"can't be used: .*plans\.yaml:4:15: 'EURO' stands here"):
        PLANS_FILE.read(path)
    path.write_text(PLAN)
    assert list(PLANS_FILE.read(path).plans) == ["a"]


def test_the_schema_is_one_and_says_of_each_value_what_is_allowed() -> None:
    schema = json.loads(PLANS_FILE.schema_file.read_bytes())
    Draft202012Validator.check_schema(schema)

    def without_words(part: object) -> list[object]:
        if isinstance(part, list):
            return [found for each in part for found in without_words(each)]
        if not isinstance(part, dict):
            return []
        silent = "type" in part and "description" not in part
        return [part] * silent + [found for each in part.values() for found in without_words(each)]

    assert without_words(schema) == []
