"""The environment, read once, in one place.

A value that can't be used raises InvalidSettingError: one line that names the variable, the value and what is allowed.
An empty value counts as not set. Nothing else in this system reads the environment for its own configuration.
"""

from __future__ import annotations

import base64
import binascii
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from metering.errors import InvalidSettingError
from metering.rows import WINDOW_MINUTES_ALLOWED

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_TABLES = {
    "DYNAMODB_TABLE": "usage-aggregator",
    "LEDGER_TABLE": "usage-events",
    "REJECTED_TABLE": "usage-rejected",
    "KCL_APPLICATION": "usage-aggregator-consumer",
}
_AWS_NAME = re.compile(r"[A-Za-z0-9_.-]{3,128}\Z")
_REGION = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+\Z")
_HOST = re.compile(r"[A-Za-z0-9_.:-]{1,253}\Z")
_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour)\Z", re.ASCII)
_RATE_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_WEBHOOK_KEY_PREFIX = "whsec_"
_WEBHOOK_KEY_BYTES = range(24, 65)
"""As the Standard Webhooks specification has them."""
_VISIBLE_ASCII = re.compile(r"[!-~]+\Z")
_WORKER_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `requests` in any `seconds`."""

    requests: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of the system. Times end in their unit; None means off.

    kinesis_endpoint, dynamodb_endpoint: a URL, or None for AWS's own.
    home: METERING_HOME, where the local stack keeps its data.
    api_keys_file: who may do what; None: the services are open. api_key_rate_limit: of each key; None: no limit.
    plans_file: PLANS_FILE, the price plans; None: no invoices.
    min_as_of_wait_ms: how long billing waits for a later as_of; less than the idle timeout of a load balancer, 60 s.
    alerts_file: ALERTS_FILE, which usage is watched and limited; None: none is. alerts_interval_s: between two looks.
    alerts_webhook_url: where alerts are posted; None: nowhere. alerts_webhook_secret: the key that signs them, decoded.
    meters_file: METERS_FILE, how each metric is aggregated; None: all are summed. meters_strict: others are refused.
    ledger: whether each event_id is claimed; batches always are.
    kcl_properties: KCL_PROPERTIES, `name=value` pairs that override properties/consumer.properties.
    """

    region: str
    kinesis_endpoint: str | None
    dynamodb_endpoint: str | None
    stream: str
    table: str
    ledger_table: str
    rejected_table: str
    kcl_application: str
    kcl_properties: tuple[tuple[str, str], ...]
    worker_id: str
    bind_host: str
    collector_port: int
    billing_port: int
    kinesis_port: int
    dynamodb_port: int
    home: Path
    log_level: str
    partitions: int
    stream_shards: int
    window_minutes: int
    event_age_days_max: int | None
    ledger: bool
    ledger_ttl_days: int
    pending_events_max: int
    linger_ms: int
    put_deadline_ms: int
    min_as_of_wait_ms: int
    api_keys_file: Path | None
    api_key_rate_limit: RateLimit | None
    plans_file: Path | None
    meters_file: Path | None
    meters_strict: bool
    alerts_file: Path | None
    alerts_interval_s: int
    alerts_webhook_url: str | None
    alerts_webhook_secret: bytes | None = field(repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read all settings from `environment`. Raises InvalidSettingError for the first that can't be used."""
        read = _Reader(environment)
        tables = [read.aws_name(variable, default) for variable, default in _TABLES.items()]
        if len(set(tables)) < len(tables):
            raise InvalidSettingError(" and ".join(_TABLES), ", ".join(tables), "each table needs a name of its own")
        rate = read.rate_limit("API_KEY_RATE_LIMIT")
        if rate and not read.text("API_KEYS_FILE", ""):
            allowed = "allowed: only with API_KEYS_FILE, since requests are counted for each key"
            raise InvalidSettingError("API_KEY_RATE_LIMIT", read.text("API_KEY_RATE_LIMIT", ""), allowed)
        strict = read.choice("METERS_STRICT", "off", ("ON", "OFF")) == "ON"
        if strict and not read.text("METERS_FILE", ""):
            allowed = "allowed: only with METERS_FILE, which says what metrics there are"
            raise InvalidSettingError("METERS_STRICT", read.text("METERS_STRICT", ""), allowed)
        webhook_url, webhook_secret = read.webhook()
        both = read.url("AWS_ENDPOINT") or read.url("AWS_ENDPOINT_URL")
        return cls(
            region=read.region(),
            kinesis_endpoint=read.url("AWS_ENDPOINT_URL_KINESIS") or both,
            dynamodb_endpoint=read.url("AWS_ENDPOINT_URL_DYNAMODB") or both,
            stream=read.aws_name("KINESIS_STREAM", "usage-events"),
            table=tables[0],
            ledger_table=tables[1],
            rejected_table=tables[2],
            kcl_application=tables[3],
            kcl_properties=read.pairs("KCL_PROPERTIES"),
            worker_id=read.match(
                "WORKER_ID", socket.gethostname(), _WORKER_ID, "1 to 128 letters, digits and _ . : -, unique per worker"
            ),
            bind_host=read.match("BIND_HOST", "127.0.0.1", _HOST, "a host name or IP address, without a port"),
            collector_port=read.integer("COLLECTOR_PORT", 8080, 1, 65535),
            billing_port=read.integer("BILLING_PORT", 8081, 1, 65535),
            kinesis_port=read.integer("KINESIS_PORT", 4567, 1, 65535),
            dynamodb_port=read.integer("DYNAMODB_PORT", 8000, 1, 65535),
            home=Path(read.text("METERING_HOME", ".metering")).absolute(),
            log_level=read.choice("LOG_LEVEL", "INFO", LOG_LEVELS),
            partitions=read.integer("KINESIS_PARTITIONS", 64, 1, 10_000),
            stream_shards=read.integer("KINESIS_SHARDS", 2, 1, 1000),
            window_minutes=int(read.choice("USAGE_WINDOW_MINUTES", "60", tuple(map(str, WINDOW_MINUTES_ALLOWED)))),
            event_age_days_max=read.optional_integer("EVENT_MAX_AGE_DAYS", 1, 36_500),
            ledger=read.choice("LEDGER", "on", ("ON", "OFF")) == "ON",
            ledger_ttl_days=read.integer("LEDGER_TTL_DAYS", 35, 1, 36_500),
            pending_events_max=read.integer("MAX_PENDING_EVENTS", 10_000, 1, 10_000_000),
            linger_ms=read.integer("COLLECTOR_LINGER_MS", 2, 0, 1000),
            put_deadline_ms=read.integer("COLLECTOR_DEADLINE_MS", 10_000, 100, 300_000),
            min_as_of_wait_ms=read.integer("MIN_AS_OF_WAIT_MS", 10_000, 0, 50_000),
            api_keys_file=read.optional_path("API_KEYS_FILE"),
            api_key_rate_limit=rate,
            plans_file=read.optional_path("PLANS_FILE"),
            meters_file=read.optional_path("METERS_FILE"),
            meters_strict=strict,
            alerts_file=read.optional_path("ALERTS_FILE"),
            alerts_interval_s=read.integer("ALERTS_INTERVAL_S", 60, 1, 3600),
            alerts_webhook_url=webhook_url,
            alerts_webhook_secret=webhook_secret,
        )


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, variable: str, default: str) -> str:
        return self._environment.get(variable, "").strip() or default

    def match(self, variable: str, default: str, pattern: re.Pattern[str], allowed: str) -> str:
        value = self.text(variable, default)
        if not pattern.match(value):
            raise InvalidSettingError(variable, value, f"allowed: {allowed}")
        return value

    def aws_name(self, variable: str, default: str) -> str:
        return self.match(variable, default, _AWS_NAME, "3 to 128 letters, digits and _ . -")

    def region(self) -> str:
        variable = "AWS_REGION" if self.text("AWS_REGION", "") else "AWS_DEFAULT_REGION"
        return self.match(variable, "us-east-1", _REGION, "a region's name, as us-east-1")

    def choice(self, variable: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.text(variable, default)
        if value.upper() not in allowed:
            raise InvalidSettingError(variable, value, f"allowed: {', '.join(allowed)}")
        return value.upper()

    def integer(self, variable: str, default: int, least: int, most: int) -> int:
        value = self.text(variable, str(default))
        if not (value.isascii() and value.isdigit() and len(value) <= 10 and least <= int(value) <= most):
            raise InvalidSettingError(variable, value, f"allowed: a whole number from {least} to {most}")
        return int(value)

    def optional_integer(self, variable: str, least: int, most: int) -> int | None:
        return self.integer(variable, least, least, most) if self.text(variable, "") else None

    def optional_path(self, variable: str) -> Path | None:
        value = self.text(variable, "")
        return Path(value).absolute() if value else None

    def rate_limit(self, variable: str) -> RateLimit | None:
        value = self.text(variable, "")
        if not value:
            return None
        rate = _RATE.match(value)
        if rate is None:
            raise InvalidSettingError(variable, value, "allowed: empty for none, or requests as 100/second, 600/minute")
        return RateLimit(int(rate[1]), _RATE_SECONDS[rate[2]])

    def webhook(self) -> tuple[str | None, bytes | None]:
        """Return the URL of the webhook and the key that signs what is posted there: both or neither."""
        allowed = (
            "allowed: empty for none, or a URL such as https://example.com/alerts, in ASCII and without a password"
        )
        try:
            url = self.url("ALERTS_WEBHOOK_URL", allowed)
            usable = url is None or ("@" not in urlsplit(url).netloc and _VISIBLE_ASCII.match(url))
        except InvalidSettingError:
            url, usable = None, False
        if not usable:  # the value is not shown: the path of many a webhook is its password
            raise InvalidSettingError("ALERTS_WEBHOOK_URL", "***", allowed)
        secret = self._webhook_secret("ALERTS_WEBHOOK_SECRET")
        if url is None or secret is not None:
            return url, secret
        raise InvalidSettingError("ALERTS_WEBHOOK_SECRET", "", "allowed: with ALERTS_WEBHOOK_URL, whsec_ and a key")

    def _webhook_secret(self, variable: str) -> bytes | None:
        value = self.text(variable, "")
        try:
            key = base64.b64decode(value.removeprefix(_WEBHOOK_KEY_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not value or (value.startswith(_WEBHOOK_KEY_PREFIX) and len(key) in _WEBHOOK_KEY_BYTES):
            return key or None
        # Never the value: what is nearly right tells the key.
        raise InvalidSettingError(variable, "***", "allowed: whsec_ and 24 to 64 random bytes in base64") from None

    def url(
        self, variable: str, allowed: str = "allowed: empty for AWS, or a URL such as http://127.0.0.1:4567"
    ) -> str | None:
        value = self.text(variable, "")
        if not value:
            return None
        try:
            parts = urlsplit(value)
            usable = parts.scheme in {"http", "https"} and _HOST.match(parts.hostname or "") and parts.port != 0
        except ValueError as error:
            raise InvalidSettingError(variable, value, allowed) from error
        if not usable:
            raise InvalidSettingError(variable, value, allowed)
        return value

    def pairs(self, variable: str) -> tuple[tuple[str, str], ...]:
        pairs = []
        for word in self.text(variable, "").split():
            name, equals, value = word.partition("=")
            if not (name and equals and value):
                raise InvalidSettingError(variable, word, "allowed: name=value pairs with spaces between them")
            pairs.append((name, value))
        return tuple(pairs)
