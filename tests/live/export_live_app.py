"""Billing on a table of EXPORT_TENANTS tenants whose names are long, and that says how many of them it has read.

EXPORT_FAILS names one whose reading fails.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

from flask import Flask

from billing.app import create_app
from metering.errors import StoreUnavailableError
from metering.logs import configure_logging
from metering.memory import MemoryTables
from metering.ports import TenantPage, Total
from metering.settings import Settings
from metering.windows import WindowRow

METRIC = "m" * 128
AT = datetime(2024, 1, 15, 10, tzinfo=UTC)


def tenant(number: int) -> str:
    return f"{number:0128d}"


class ManyTenants(MemoryTables):
    """Each has used its number."""

    def __init__(self, tenants: int, fails: str | None) -> None:
        super().__init__()
        self._tenants = tenants
        self._fails = fails
        self._lock = threading.Lock()
        self.read = 0

    def tenants(self, *, limit: int, after: str | None) -> TenantPage:
        first = 0 if after is None else int(after) + 1
        end = min(self._tenants, first + limit)
        return TenantPage(tuple(map(tenant, range(first, end))), tenant(end - 1) if end < self._tenants else None)

    def totals(self, tenant_id: str) -> list[Total]:
        with self._lock:
            self.read += 1
        if self._fails and int(tenant_id) == int(self._fails):
            raise StoreUnavailableError("the table is away")
        return [Total(tenant_id, METRIC, Decimal(1), 1, AT)]

    def windows(self, tenant_id: str, metric: str, *, start: datetime, end: datetime) -> Iterator[WindowRow]:
        yield WindowRow(AT, 60, Decimal(int(tenant_id)), 1)


def create() -> Flask:
    settings = Settings.from_environment(os.environ)
    configure_logging(settings.log_level)
    tables = ManyTenants(int(os.environ["EXPORT_TENANTS"]), os.environ.get("EXPORT_FAILS"))
    app = create_app(tables, settings)

    @app.get("/read")
    def read() -> dict[str, int]:
        return {"read": tables.read}

    return app
