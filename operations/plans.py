"""`metering plans`: what is wrong with a file of price plans, and what usage would cost by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from metering.errors import InvalidEventError
from metering.events import decimal_text, parse_event, parse_name
from operations.named_files import shown_name
from operations.yaml_check import read_or_exit

if TYPE_CHECKING:
    from billing.invoicing import Invoice
    from billing.plans import Plan, Plans


@click.group()
def plans() -> None:
    """Look after price plans, the file that PLANS_FILE names (docs/plans.md)."""


@plans.command()
@click.argument("file")
def check(*, file: str) -> None:
    """Print what is wrong with FILE, - for stdin, as FILE:LINE:COLUMN: sentence; code 0 only when nothing is."""
    from billing.plans_file import PLANS_FILE

    for line in _summary(shown_name(file), read_or_exit(PLANS_FILE, file)):
        click.echo(line)


@plans.command("rate")
@click.argument("file")
@click.option("--tenant", "tenant_id", required=True, help="By whose plan.")
@click.option(
    "--usage", "usages", multiple=True, metavar="METRIC=VALUE", help="What was used in the month; repeatable."
)
@click.option("--period", help="The month, as 2024-01.  [default: this month]")
def rate_usage(*, file: str, tenant_id: str, usages: tuple[str, ...], period: str | None) -> None:
    """Print what usage in a month would cost by FILE, - for stdin, and how it comes about."""
    from billing.invoicing import make_invoice
    from billing.plans import PERIODS_ALLOWED, parse_period, parts, period_at
    from billing.plans_file import PLANS_FILE

    found = read_or_exit(PLANS_FILE, file)
    now = datetime.now(UTC)
    month = period_at(now, found.timezone) if period is None else parse_period(period)
    if month is None:
        raise click.UsageError(f"--period={period}: allowed: {PERIODS_ALLOWED}")
    try:
        parse_name(tenant_id, "tenant_id")
        usage = _usage(tenant_id, usages, now=now)
    except InvalidEventError as error:
        raise click.UsageError(error.detail) from error
    changes = parts(found, tenant_id, month)[1:]
    if changes:
        raise click.UsageError(
            f"the plan of {tenant_id} changes on {changes[0].first_day}: choose a month in which it does not, since "
            "nobody can tell how much of the usage was before"
        )
    invoice = make_invoice(found, tenant_id, month, metrics=usage, usage_of=lambda metric, _part: usage[metric])
    for line in _bill(invoice):
        click.echo(line)


def _summary(name: str, found: Plans) -> Iterator[str]:
    from billing.rating import falls

    changing = sum(len(starts) > 1 for starts in found.tenants.values())
    tenants = f"tenants with plans of their own: {len(found.tenants)}, {changing} of them over time"
    yield f"{name}: plans: {len(found.plans)}; {tenants}; months in {found.timezone}"
    for plan in found.plans.values():
        yield f"  {plan.name}: {_plan_line(plan)}"
        for metric, price in plan.prices.items():
            for end in falls(price):
                yield f"  {plan.name}: note: {metric} costs less just beyond {decimal_text(end)} than at it"


def _plan_line(plan: Plan) -> str:
    prices = ", ".join(f"{metric} {price.model}" for metric, price in plan.prices.items())
    return f"{plan.currency}, flat fee {plan.flat_fee:f}, minimum {plan.minimum:f}; {prices or 'no metrics'}"


def _usage(tenant_id: str, texts: Iterable[str], *, now: datetime) -> dict[str, Decimal]:
    """Return metrics and values of METRIC=VALUE, by the rules of an event: no metric has an `=`."""
    usage: dict[str, Decimal] = {}
    for text in texts:
        metric, equals, value = text.partition("=")
        if not equals or metric in usage:
            raise click.UsageError(f"--usage takes METRIC=VALUE, each metric once, not {text[:64]!r}")
        event = parse_event({"tenant_id": tenant_id, "metric": metric, "value": value}, now=now)
        usage[event.metric] = event.value
    return usage


def _bill(invoice: Invoice) -> Iterator[str]:
    from billing.invoice_forms import slice_words

    yield f"{invoice.tenant_id}, {invoice.period} ({invoice.timezone}), plan {invoice.plan.name}, {invoice.currency}"
    rows: list[tuple[str, str, str]] = []
    for line in invoice.lines:
        billed = "" if line.billed == line.usage else f", billed {decimal_text(line.billed)}"
        rows.append((line.metric, f"{line.model}: {decimal_text(line.usage)}{billed}", str(line.amount)))
        rows += [("", slice_words(part), "") for part in line.slices]
    rows += [
        ("flat fee", "", str(invoice.flat_fee)),
        ("up to the minimum", "", str(invoice.minimum_adjustment)),
        ("total", "", str(invoice.total)),
    ]
    yield from _columns(rows)
    for unpriced in invoice.unpriced:
        yield f"not billed, since the plan has no price for it: {unpriced.metric} {decimal_text(unpriced.usage)}"


def _columns(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    lines = list(rows)
    widths = [max(len(row[column]) for row in lines) for column in range(3)]
    for name, how, amount in lines:
        yield f"  {name:{widths[0]}}  {how:{widths[1]}}  {amount:>{widths[2]}}".rstrip()
