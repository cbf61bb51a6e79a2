"""Files of price plans, for tests: one with every model, one whose plan changes within January 2024."""

from __future__ import annotations

WHOLE = """\
default_plan: standard
tenants: {acme: enterprise}
plans:
  standard:
    currency: EUR
    flat_fee: "49.00"
    minimum: "0"
    metrics:
      seats:     {model: per_unit, unit_price: "12.00"}
      api_calls: {model: graduated, free: 1000, tiers: [{up_to: 10000, unit_price: "0.01"}, {unit_price: "0.005"}]}
      sms:       {model: volume, tiers: [{up_to: 100, unit_price: "0.10", flat_price: "1.00"}, {unit_price: "0.08"}]}
      storage:   {model: package, package_size: 100, package_price: "5.00"}
  enterprise: {currency: JPY}
"""

CHANGE = """\
default_plan: [{plan: small}, {plan: large, from: 2024-01-16}]
plans:
  small:
    currency: EUR
    flat_fee: 10
    minimum: 31
    metrics: {calls: {model: per_unit, free: 1000, unit_price: 0.01}, old: {model: per_unit, unit_price: 1}}
  large:
    currency: EUR
    flat_fee: 100
    metrics: {calls: {model: graduated, tiers: [{up_to: 100, unit_price: 0.5}, {unit_price: 0.1}]}}
"""
