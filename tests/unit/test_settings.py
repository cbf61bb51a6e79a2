"""The environment: defaults, empty values, and one line for each value that can't be used."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from metering.errors import InvalidSettingError
from metering.settings import RateLimit, Settings


def test_an_empty_environment_gives_the_defaults_of_the_design(settings: Settings) -> None:
    assert settings.region == "us-east-1"
    assert settings.kinesis_endpoint is None
    assert settings.dynamodb_endpoint is None
    assert (settings.stream, settings.table) == ("usage-events", "usage-aggregator")
    assert (settings.ledger_table, settings.rejected_table) == ("usage-events", "usage-rejected")
    assert settings.kcl_application == "usage-aggregator-consumer"
    assert (settings.collector_port, settings.billing_port) == (8080, 8081)
    assert settings.partitions == 64
    assert settings.window_minutes == 60
    assert settings.event_age_days_max is None
    assert settings.ledger
    assert settings.ledger_ttl_days == 35
    assert settings.min_as_of_wait_ms == 10_000
    assert settings.home == Path(".metering").absolute()
    assert settings.plans_file is None
    assert settings.log_level == "INFO"


def test_an_empty_value_counts_as_not_set(settings: Settings) -> None:
    names = ["AWS_REGION", "AWS_ENDPOINT", "COLLECTOR_PORT", "EVENT_MAX_AGE_DAYS", "WORKER_ID", "KCL_PROPERTIES"]
    assert Settings.from_environment(dict.fromkeys(names, " ")) == settings


def test_one_endpoint_serves_both_services_unless_one_has_its_own() -> None:
    both = Settings.from_environment({"AWS_ENDPOINT": "http://localhost:4566"})
    assert both.kinesis_endpoint == both.dynamodb_endpoint == "http://localhost:4566"
    own = Settings.from_environment(
        {"AWS_ENDPOINT": "http://localhost:4566", "AWS_ENDPOINT_URL_DYNAMODB": "http://localhost:8000"}
    )
    assert own.kinesis_endpoint == "http://localhost:4566"
    assert own.dynamodb_endpoint == "http://localhost:8000"


def test_the_regions_other_variable_is_read_where_the_first_is_not_set() -> None:
    assert Settings.from_environment({"AWS_DEFAULT_REGION": "eu-central-1"}).region == "eu-central-1"
    both = {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-central-1"}
    assert Settings.from_environment(both).region == "eu-west-1"


def test_values_are_read_as_they_are_meant() -> None:
    read = Settings.from_environment(
        {
            "LOG_LEVEL": "debug",
            "USAGE_WINDOW_MINUTES": "15",
            "EVENT_MAX_AGE_DAYS": "30",
            "KCL_PROPERTIES": "maxRecords=500 idleTimeBetweenReadsInMillis=200",
            "COLLECTOR_PORT": " 18080 ",
            "METERING_HOME": "/srv/metering",
            "PLANS_FILE": "plans.yaml",
            "METERS_FILE": "meters.yaml",
            "METERS_STRICT": "On",
        }
    )
    assert read.log_level == "DEBUG"
    assert read.window_minutes == 15
    assert read.event_age_days_max == 30
    assert read.kcl_properties == (("maxRecords", "500"), ("idleTimeBetweenReadsInMillis", "200"))
    assert read.collector_port == 18080
    assert read.home == Path("/srv/metering")
    assert read.plans_file == Path("plans.yaml").absolute()
    assert (read.meters_file, read.meters_strict) == (Path("meters.yaml").absolute(), True)


PORTS = ["COLLECTOR_PORT", "BILLING_PORT", "KINESIS_PORT", "DYNAMODB_PORT"]
NAMES = ["KINESIS_STREAM", "DYNAMODB_TABLE", "LEDGER_TABLE", "REJECTED_TABLE", "KCL_APPLICATION"]
URLS = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_DYNAMODB"]
UNUSABLE = [
    *((port, value) for port in PORTS for value in ("0", "65536", "-1", "+80", "80.0", "http", "٨٠", "9" * 5000)),
    *((name, value) for name in NAMES for value in ("ab", "x" * 129, "a b", "a/b", "a\nb", "ü-table")),
    *(
        (url, value)
        for url in URLS
        for value in (
            "localhost:4566",
            "127.0.0.1",
            "ftp://localhost",
            "http://",
            "http://:4566",
            "http://localhost:port",
            "http://localhost:99999",
            "http://localhost:0",
            "http://[::1",
            "http://a b",
        )
    ),
    *(("AWS_REGION", value) for value in ("us", "US-EAST-1", "us east", "us-east-1;")),
    ("AWS_DEFAULT_REGION", "nowhere"),
    *(("WORKER_ID", value) for value in ("a b", "x" * 129, "a/b")),
    *(("BIND_HOST", value) for value in ("a b", "http://localhost", "0.0.0.0\n::")),
    *(("LOG_LEVEL", value) for value in ("TRACE", "10")),
    *(("USAGE_WINDOW_MINUTES", value) for value in ("20", "0", "60.0", "hour")),
    *(("MIN_AS_OF_WAIT_MS", value) for value in ("-1", "50001", "10s")),
    *(("EVENT_MAX_AGE_DAYS", value) for value in ("0", "-1", "36501", "30d")),
    *(("LEDGER_TTL_DAYS", value) for value in ("0", "x")),
    *(("LEDGER", value) for value in ("yes", "0", "true")),
    *(("MAX_PENDING_EVENTS", value) for value in ("0", "1e4")),
    *(("KINESIS_PARTITIONS", value) for value in ("0", "10001")),
    *(("KINESIS_SHARDS", value) for value in ("0", "1001")),
    *(("COLLECTOR_LINGER_MS", value) for value in ("-1", "1001")),
    *(("COLLECTOR_DEADLINE_MS", value) for value in ("99", "300001")),
    *(("KCL_PROPERTIES", value) for value in ("maxRecords", "=5", "maxRecords=", "maxRecords = 5")),
]


@pytest.mark.parametrize(("variable", "value"), UNUSABLE, ids=lambda text: text[:24].encode("unicode_escape").decode())
def test_a_value_that_cannot_be_used_is_one_line_that_says_what_is_allowed(variable: str, value: str) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        Settings.from_environment({variable: value})
    line = str(caught.value)
    assert caught.value.variable == variable
    assert line.startswith(f"{variable}=")
    assert "allowed: " in line
    assert len(line.splitlines()) == 1
    assert any(repr(word) in line for word in (value, *value.split()))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "localhost", "billing-api.internal"])  # noqa: S104
def test_hosts_and_addresses_can_be_bound_to(host: str) -> None:
    assert Settings.from_environment({"BIND_HOST": host}).bind_host == host


def test_two_tables_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidSettingError, match="each table needs a name of its own"):
        Settings.from_environment({"LEDGER_TABLE": "usage-aggregator"})


def test_the_key_file_s_place_does_not_depend_on_where_a_service_goes_later() -> None:
    assert Settings.from_environment({}).api_keys_file is None
    assert Settings.from_environment({"API_KEYS_FILE": "keys"}).api_keys_file == Path("keys").absolute()


def test_a_rate_limit_counts_requests_in_a_unit_of_time() -> None:
    assert Settings.from_environment({}).api_key_rate_limit is None
    limited = Settings.from_environment({"API_KEYS_FILE": "keys", "API_KEY_RATE_LIMIT": "600/minute"})
    assert limited.api_key_rate_limit == RateLimit(600, 60)


def test_a_rate_limit_without_keys_is_refused_rather_than_ignored() -> None:
    with pytest.raises(InvalidSettingError, match=r"API_KEY_RATE_LIMIT='5/hour' can't be used: .*API_KEYS_FILE"):
        Settings.from_environment({"API_KEY_RATE_LIMIT": "5/hour"})


@pytest.mark.parametrize(
    "text", ["0/second", "10", "10/day", "ten/second", "1000000000/second", "1 / second", "-1/hour"]
)
def test_a_rate_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettingError, match="API_KEY_RATE_LIMIT"):
        Settings.from_environment({"API_KEY_RATE_LIMIT": text})


# ── Where alerts are posted ──────────────────────────────────────────────────────────────────────────────────────────

WEBHOOK_KEY = base64.b64encode(bytes(range(24))).decode()
WEBHOOK = {"ALERTS_WEBHOOK_URL": "https://example.com/a", "ALERTS_WEBHOOK_SECRET": f"whsec_{WEBHOOK_KEY}"}


def test_alerts_are_posted_where_the_url_says_signed_by_the_key() -> None:
    read = Settings.from_environment({**WEBHOOK, "ALERTS_INTERVAL_S": "5"})
    assert (read.alerts_webhook_url, read.alerts_webhook_secret) == ("https://example.com/a", bytes(range(24)))
    assert read.alerts_interval_s == 5
    assert WEBHOOK_KEY not in repr(read)
    assert "x01" not in repr(read)


def test_a_key_alone_is_no_fault_and_a_url_alone_is() -> None:
    alone = Settings.from_environment({"ALERTS_WEBHOOK_SECRET": WEBHOOK["ALERTS_WEBHOOK_SECRET"]})
    assert alone.alerts_webhook_url is None
    with pytest.raises(InvalidSettingError, match=r"ALERTS_WEBHOOK_SECRET='' can't be used"):
        Settings.from_environment({"ALERTS_WEBHOOK_URL": "http://localhost/"})


@pytest.mark.parametrize(
    "secret",
    [
        WEBHOOK_KEY,
        f"whsec{WEBHOOK_KEY}",
        "whsec_",
        f"whsec_{base64.b64encode(bytes(23)).decode()}",
        f"whsec_{base64.b64encode(bytes(65)).decode()}",
        f"whsec_{WEBHOOK_KEY}é",
        f"whsec_{WEBHOOK_KEY[:-1]}",
        f"whsec_{WEBHOOK_KEY[:9]} {WEBHOOK_KEY[9:]}",
    ],
)
def test_a_key_that_is_none_is_refused_and_never_shown(secret: str) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        Settings.from_environment({**WEBHOOK, "ALERTS_WEBHOOK_SECRET": secret})
    assert str(caught.value) == (
        "ALERTS_WEBHOOK_SECRET='***' can't be used: allowed: whsec_ and 24 to 64 random bytes in base64"
    )


@pytest.mark.parametrize(
    "url",
    [
        "example.com",
        "me:secret@example.com",
        "ftp://example.com/",
        "http://",
        "https://me:secret@example.com/",
        "https://a/b c",
        "http://a/é",
    ],
)
def test_a_url_that_cannot_be_posted_to_is_refused(url: str) -> None:
    with pytest.raises(InvalidSettingError, match=r"^ALERTS_WEBHOOK_URL=") as caught:
        Settings.from_environment({**WEBHOOK, "ALERTS_WEBHOOK_URL": url})
    assert "secret" not in str(caught.value)
