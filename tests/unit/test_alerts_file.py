"""ALERTS_FILE: what it means, and the place and the sentence of what can be wrong with it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from billing.alerts import NO_ALERTS, AlertRule, Quota, refuse_alerts_unaligned
from billing.alerts_file import ALERTS_FILE, alerts_of
from metering.errors import InvalidRangeError, InvalidSettingError
from metering.local_time import Period
from metering.settings import Settings
from metering.yaml_files import InvalidFileError
from tests.builders import NOW

WHOLE = """\
timezone: Europe/Berlin
alerts:
  - name: calls-high
    tenants: [acme, "0123", no]
    metric: api_calls
    period: day
    thresholds: [8000, "10000.5"]
  - {name: seats, metric: seats, period: month, thresholds: [0.000000001]}
quotas:
  - {tenants: [acme, globex], metric: api_calls, period: month, limit: "10000"}
  - {metric: api_calls, period: day, limit: 5}
"""
ALERT = "alerts: [{name: a, metric: m, period: day, thresholds: [1]}"
QUOTA = "quotas: [{metric: m, period: day, limit: 1}"


def faults(text: str) -> list[str]:
    with pytest.raises(InvalidFileError) as caught:
        ALERTS_FILE.parse(text.encode(), name="f")
    return caught.value.lines


def test_a_file_says_what_is_watched_and_limited() -> None:
    found = ALERTS_FILE.parse(WHOLE.encode(), name="f")
    assert found.timezone == "Europe/Berlin"
    assert found.rules == (
        AlertRule("calls-high", ("acme", "0123", "no"), "api_calls", Period.DAY, (Decimal(8000), Decimal("10000.5"))),
        AlertRule("seats", None, "seats", Period.MONTH, (Decimal("1E-9"),)),
    )
    own = Quota("api_calls", Period.MONTH, Decimal(10000))
    assert [found.quota(tenant_id, "api_calls") for tenant_id in ("acme", "globex", "initech")] == [
        own, own, Quota("api_calls", Period.DAY, Decimal(5))
    ]  # fmt: skip
    assert found.quota("acme", "seats") is None


def test_a_file_may_hold_one_of_both_and_means_utc() -> None:
    for text in (f"{ALERT}]", f"{QUOTA}]"):
        assert ALERTS_FILE.parse(text.encode(), name="f").timezone == "UTC"
    assert alerts_of(Settings.from_environment({}), now=NOW) == NO_ALERTS


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("timezone: UTC", "f:1:1: a mapping stands here; allowed: a mapping with alerts, quotas or both"),
        ("alert: []", "f:1:1: there is no member 'alert' here; did you mean alerts?"),
        ("alerts: []", "f:1:9: a list stands here; allowed: a list of 1 to 1000 alerts"),
        (f"timezone: Mars/Base\n{QUOTA}]", "f:1:11: 'Mars/Base' stands here; allowed: an IANA time zone"),
        (ALERT.replace("name: a", "name: a b") + "]", "f:1:17: 'a b' stands here; name must be 1 to 128 letters"),
        (ALERT.replace("metric: m", "metric: m#") + "]", "f:1:28: 'm#' stands here; metric must be 1 to 128"),
        (ALERT.replace("day", "week") + "]", "f:1:39: 'week' stands here; allowed: day, month"),
        (ALERT.replace("[1]", "[]") + "]", "f:1:56: a list stands here; allowed: a list of 1 to 20 rising quantities"),
        (ALERT.replace("[1]", "[0]") + "]", "f:1:57: 0 stands here; allowed: more than 0"),
        (ALERT.replace("[1]", "['0.0']") + "]", "f:1:57: 0 stands here; allowed: more than 0"),
        (ALERT.replace("[1]", "[-1]") + "]", "f:1:57: the number -1 stands here; allowed: a quantity of 0 or more"),
        (ALERT.replace("[1]", "['1e3']") + "]", "f:1:57: '1e3' stands here; allowed: a quantity of 0 or more"),
        (ALERT.replace("[1]", "[0.0000000001]") + "]", "f:1:57: 0.0000000001 stands here; a quantity has 9 digits"),
        (ALERT.replace("[1]", "[2, '2.0']") + "]", "f:1:60: 2 stands here after 2; allowed: more"),
        (ALERT.replace("[1]", "[3, 1]") + "]", "f:1:60: 1 stands here after 3; allowed: more"),
        (ALERT.replace("[1]", str(list(range(1, 22)))) + "]", "f:1:56: a list stands here; allowed: a list of 1 to 20"),
        (f"{ALERT}, {{name: a, metric: n, period: month, thresholds: [1]}}]", "f:1:69: 'a' stands here again"),
        (f"{ALERT[:-1]}, tenants: []}}]", "f:1:70: a list stands here; allowed: a list of 1 to 10000 tenants"),
        (f"{ALERT[:-1]}, tenants: [t, t]}}]", "f:1:74: 't' stands here twice; allowed: once"),
        (f"{ALERT[:-1]}, tenants: ['t t']}}]", "f:1:71: 't t' stands here; tenant_id must be 1 to 128"),
        (f"{QUOTA}, {{metric: m, period: month, limit: 2}}]", "f:1:46: there is a quota of m for all tenants already"),
        (
            f"{QUOTA[:-1]}, tenants: [t]}}, {{metric: m, period: month, limit: 2, tenants: [u, t]}}]",
            "f:1:110: there is a quota of m for t already; allowed: one",
        ),
        (QUOTA.replace("limit", "limits") + "]", "f:1:10: missing here: limit"),
        (ALERT[:-1] + ", tenants: [0123]}]", "f:1:71: the number 123 stands here; allowed: the name of a tenant, in "),
    ],
)
def test_a_fault_has_a_place_and_a_sentence(text: str, fault: str) -> None:
    assert any(line.startswith(fault) for line in faults(text)), faults(text)


def test_every_fault_is_found_at_once() -> None:
    text = WHOLE.replace("Berlin", "Brlin").replace("8000", "20000").replace("[acme, globex]", "[acme, acme]")
    assert [line.split(": ")[0] for line in faults(text)] == ["f:1:11", "f:7:25", "f:10:22"]


# ── Zones ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("zone", "minutes"),
    [("Europe/Berlin", 60), ("Asia/Kolkata", 30), ("Asia/Kathmandu", 15), ("Australia/Lord_Howe", 30)],
)
@pytest.mark.parametrize("month", [1, 7])
def test_a_zone_needs_rows_that_can_tell_its_days_apart_all_the_year(zone: str, minutes: int, month: int) -> None:
    alerts = ALERTS_FILE.parse(f"timezone: {zone}\n{QUOTA}]".encode(), name="f")
    now = datetime(2024, month, 15, tzinfo=UTC)
    for size in (60, 30, 15):
        if size <= minutes:
            refuse_alerts_unaligned(alerts, window_minutes=size, now=now)
            continue
        with pytest.raises(InvalidRangeError) as caught:
            refuse_alerts_unaligned(alerts, window_minutes=size, now=now)
        assert (caught.value.code, caught.value.window_minutes) == ("timezone_needs_smaller_windows", minutes)


def test_the_days_of_the_month_before_must_fit_too() -> None:
    alerts = ALERTS_FILE.parse(f"{ALERT}]\ntimezone: Asia/Pyongyang".encode(), name="f")  # +08:30 until 2018-05-05
    refuse_alerts_unaligned(alerts, window_minutes=60, now=datetime(2018, 7, 1, tzinfo=UTC))
    with pytest.raises(InvalidRangeError, match=r"2018-04-30T15:30"):
        refuse_alerts_unaligned(alerts, window_minutes=60, now=datetime(2018, 6, 30, 14, 59, tzinfo=UTC))


def test_a_file_of_a_setting_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "alerts.yaml"
    settings = Settings.from_environment({"ALERTS_FILE": str(path)})
    with pytest.raises(InvalidSettingError, match="No such file"):
        alerts_of(settings, now=NOW)
    path.write_text(WHOLE)
    assert alerts_of(settings, now=NOW) == ALERTS_FILE.parse(WHOLE.encode(), name="f")
    path.write_text(WHOLE.replace("Europe/Berlin", "Asia/Kathmandu"))
    with pytest.raises(InvalidSettingError, match=r"^ALERTS_FILE=.*USAGE_WINDOW_MINUTES=15 would do"):
        alerts_of(settings, now=NOW)
