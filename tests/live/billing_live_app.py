"""Billing on in-memory tables, which hold the examples of its OpenAPI document; for live tests under gunicorn."""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask

from billing.app import create_app
from metering.settings import Settings
from tests.unit.counting_world import EVENT, World

PLANS = Path(__file__).with_name("plans.yaml")
ALERTS = Path(__file__).with_name("alerts.yaml")


def world() -> World:
    """Return what holds an event that came again, also with other content, a rejected one, and one without an id."""
    world = World()
    known = {**EVENT, "event_id": "req-8f2c"}
    for event in (known, known, known | {"value": "11"}, EVENT | {"event_id": "refused", "value": "-1"}, EVENT):
        world.put(event)
    return world


def create() -> Flask:
    return create_app(
        world().tables, Settings.from_environment({**os.environ, "PLANS_FILE": str(PLANS), "ALERTS_FILE": str(ALERTS)})
    )
