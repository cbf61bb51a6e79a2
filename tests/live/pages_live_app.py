"""Billing on in-memory tables for the tests of its pages: a month of three metrics, and names that would be markup."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from flask import Flask

from billing.app import create_app
from metering.errors import StoreUnavailableError
from metering.memory import MemoryTables
from metering.meters_file import METERS_FILE
from metering.ports import ShardProgress
from metering.settings import Settings
from tests.builders import NOW
from tests.unit.counting_world import World

PLANS = Path(__file__).with_name("pages_plans.yaml")
METERS = Path(__file__).with_name("pages_meters.yaml")
LONG = "x" * 128
"""A name that has no place to break."""
HOSTILE = "<script>alert(1)</script><img src=//example.com/x onerror=alert(2)>'; DROP TABLE usage; --"


class Away(MemoryTables):
    """Tables that can't be reached."""

    def progress(self, stream: str) -> list[ShardProgress]:
        raise StoreUnavailableError("no answer")


def full_world() -> World:
    """Return what acme used up to NOW, and others of late, and rejected events whose texts are markup."""
    world = World(meters=METERS_FILE.read(METERS))
    for day in range(1, 16):
        for metric, value in (
            ("api_calls", f"{day * 417}.25"),
            ("seats", str(day % 7 + 3)),
            ("storage", "12000000000"),
        ):
            put(world, tenant_id="acme", metric=metric, value=value, timestamp=f"2024-01-{day:02}T08:00:00Z")
    for back in range(26):
        world.at(NOW - timedelta(hours=25 - back))
        put(world, *[{"tenant_id": f"tenant-{n}", "value": str(n)} for n in range(back % 9 + 1)])
    for tenant_id in (LONG, "größe:1"):
        put(world, tenant_id=tenant_id, metric=LONG)
    put(world, tenant_id="acme", value="-1", event_id=HOSTILE, metric=HOSTILE)
    put(world, tenant_id="acme", value="-1", event_id="refused")
    return world


def put(world: World, *events: dict[str, str], **fields: str) -> None:
    """Have each event counted, in a record of its own."""
    usual = {"metric": "api_calls", "value": "1", "timestamp": "2024-01-14T09:00:00Z"}
    for partition, event in enumerate(events or (fields,)):
        world.put(usual | event, partition=partition * 40 % 64)


def create() -> Flask:
    """Return billing of the world that WORLD names: full, empty or away."""
    world = os.environ["WORLD"]
    tables = full_world().tables if world == "full" else Away() if world == "away" else MemoryTables()
    files = {"PLANS_FILE": str(PLANS), "METERS_FILE": str(METERS)} if world == "full" else {}
    return create_app(tables, Settings.from_environment({**os.environ, **files}), now=lambda: NOW)
