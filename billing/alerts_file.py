"""ALERTS_FILE: read, held to alerts.schema.json, and to what no schema can say. Every fault has a line and a column.

The schema lies beside this module, for editors too: docs/alerts.md says how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from billing.alerts import NO_ALERTS, AlertRule, Alerts, Quota, refuse_alerts_unaligned
from metering.errors import InvalidRangeError, InvalidSettingError
from metering.events import VALUE_FRACTION_DIGITS_MAX, decimal_text
from metering.local_time import Period
from metering.settings import Settings
from metering.yaml_kinds import RuleReader, YamlKind
from metering.yaml_places import Node, fraction_digits, shown


class _Reader(RuleReader[Alerts]):
    def made(self) -> Alerts:
        top = self.file.value
        timezone = self.timezone()
        rules = self._rules(top.get("alerts", ()))
        own, default = self._quotas(top.get("quotas", ()))
        return Alerts(timezone, rules, own, default)

    def _rules(self, written: Sequence[Mapping[str, Any]]) -> tuple[AlertRule, ...]:
        rules: dict[str, AlertRule] = {}
        for index, members in enumerate(written):
            node: Node = ("alerts", index)
            name = members["name"]
            self.check_name((*node, "name"), name, "name")
            if name in rules:
                self.fault((*node, "name"), f"{shown(name)} stands here again; allowed: a name of its own")
            self.check_name((*node, "metric"), members["metric"], "metric")
            thresholds = self._thresholds((*node, "thresholds"), members["thresholds"])
            tenants = self._tenants(node, members)
            rules[name] = AlertRule(name, tenants, members["metric"], Period(members["period"]), thresholds)
        return tuple(rules.values())

    def _quotas(self, written: Sequence[Mapping[str, Any]]) -> tuple[dict[tuple[str, str], Quota], dict[str, Quota]]:
        own: dict[tuple[str, str], Quota] = {}
        default: dict[str, Quota] = {}
        for index, members in enumerate(written):
            node: Node = ("quotas", index)
            metric = members["metric"]
            self.check_name((*node, "metric"), metric, "metric")
            quota = Quota(metric, Period(members["period"]), self._quantity((*node, "limit"), members["limit"]))
            tenants = self._tenants(node, members)
            if tenants is None:
                if metric in default:
                    self.fault(node, f"there is a quota of {metric} for all tenants already; allowed: one")
                default[metric] = quota
                continue
            for place, tenant_id in enumerate(tenants):
                if (tenant_id, metric) in own:
                    at = (*node, "tenants", place)
                    self.fault(at, f"there is a quota of {metric} for {tenant_id} already; allowed: one")
                own[tenant_id, metric] = quota
        return own, default

    def _tenants(self, node: Node, members: Mapping[str, Any]) -> tuple[str, ...] | None:
        if "tenants" not in members:
            return None
        tenants: dict[str, None] = {}
        for place, tenant_id in enumerate(members["tenants"]):
            at: Node = (*node, "tenants", place)
            self.check_name(at, tenant_id, "tenant_id")
            if tenant_id in tenants:
                self.fault(at, f"{shown(tenant_id)} stands here twice; allowed: once")
            tenants[tenant_id] = None
        return tuple(tenants)

    def _thresholds(self, node: Node, written: Sequence[str | Decimal | int]) -> tuple[Decimal, ...]:
        thresholds: list[Decimal] = []
        for place, each in enumerate(written):
            threshold = self._quantity((*node, place), each, above_zero=True)
            if thresholds and threshold <= thresholds[-1]:
                sentence = f"{decimal_text(threshold)} stands here after {decimal_text(thresholds[-1])}; allowed: more"
                self.fault((*node, place), sentence)
            thresholds.append(threshold)
        return tuple(thresholds)

    def _quantity(self, node: Node, written: str | Decimal | int, *, above_zero: bool = False) -> Decimal:
        quantity = Decimal(written)
        if fraction_digits(quantity) > VALUE_FRACTION_DIGITS_MAX:
            self.fault(node, f"{quantity:f} stands here; a quantity has 9 digits after the point at most")
        if above_zero and not quantity:
            self.fault(node, "0 stands here; allowed: more than 0")
        return quantity


ALERTS_FILE = YamlKind("ALERTS_FILE", Path(__file__).with_name("alerts.schema.json"), _Reader)


def alerts_of(settings: Settings, *, now: datetime) -> Alerts:
    """Return what ALERTS_FILE says, NO_ALERTS without one. now: aware UTC, the days around which must fit the rows.

    Raises InvalidSettingError as ALERTS_FILE.read, and for a time zone that needs a smaller USAGE_WINDOW_MINUTES.
    """
    path = settings.alerts_file
    if path is None:
        return NO_ALERTS
    alerts = ALERTS_FILE.read(path)
    try:
        refuse_alerts_unaligned(alerts, window_minutes=settings.window_minutes, now=now)
    except InvalidRangeError as error:
        raise InvalidSettingError("ALERTS_FILE", str(path), error.detail) from error
    return alerts
