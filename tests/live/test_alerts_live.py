"""`metering alerts run` as a process, on DynamoDB Local, against receivers that fail, hang or are away."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devstack.tools import dynamodb_local_command
from metering.alerts import Alert, Delivery, Kind
from metering.aws import dynamodb_client
from metering.dynamodb import DynamoCounterStore
from metering.dynamodb_alerts import DynamoAlertStore
from metering.settings import Settings
from operations.provision import make_tables, tables
from tests.alert_receiver import SECRET, AlertReceiver, receiving
from tests.builders import TTL_DAYS, count, event, shard
from tests.e2e.processes import METERING, Started, clean_environment, json_lines, ran, started, until
from tests.local_stack import free_port, running

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

TENANT = "tenant-123"
TEXT = "alerts: [{name: high, metric: api_calls, period: day, thresholds: [10, 20]}]"
POSTED_S = 60.0
_numbers = itertools.count()


@dataclass
class World:
    """Tables of their own, a file of alerts, and the processes that look at them."""

    environment: dict[str, str]
    folder: Path
    client: DynamoDBClient
    settings: Settings
    _counted: Iterator[int] = field(default_factory=itertools.count)

    def use(self, value: str) -> None:
        """Count an event of now, all of which is complete."""
        now = datetime.now(UTC)
        store = DynamoCounterStore(
            self.client,
            table=self.settings.table,
            rejected_table=self.settings.rejected_table,
            rejected_ttl_days=TTL_DAYS,
        )
        store.register_tenant(TENANT, now=now)
        store.open_shard(shard(), complete_until=now - timedelta(days=1), now=now)
        count(store, replace(event(value=value), occurred_at=now), first=next(self._counted))

    def runner(self, url: str | None) -> AbstractContextManager[Started]:
        webhook = {} if url is None else {"ALERTS_WEBHOOK_URL": url, "ALERTS_WEBHOOK_SECRET": SECRET}
        log = self.folder / f"alerts-{next(_numbers)}.log"
        return started([METERING, "alerts", "run"], {**self.environment, **webhook}, log)

    def alerts(self) -> list[Alert]:
        return list(
            DynamoAlertStore(self.client, table=self.settings.table).alerts(TENANT, limit=100, after=None).alerts
        )

    def ids(self) -> set[str]:
        return {alert.crossing.message_id(Kind.CROSSED) for alert in self.alerts()}

    def deliveries(self) -> set[Delivery]:
        return {alert.crossed.delivery for alert in self.alerts() if alert.crossed is not None}


@pytest.fixture(scope="module")
def dynamodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = free_port(), tmp_path_factory.mktemp("dynamodb-local")
    with running(dynamodb_local_command(port, folder / "tables"), port, folder / "log") as endpoint:
        yield endpoint


@pytest.fixture
def world(dynamodb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    name = f"alerts-{next(_numbers)}"
    (tmp_path / "alerts.yaml").write_text(TEXT)
    keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    for variable, value in keys.items():
        monkeypatch.setenv(variable, value)
    environment = clean_environment(
        AWS_ENDPOINT_URL_DYNAMODB=dynamodb,
        AWS_REGION="us-east-1",
        METERING_HOME=str(tmp_path / "home"),
        DYNAMODB_TABLE=name,
        LEDGER_TABLE=f"{name}-ledger",
        REJECTED_TABLE=f"{name}-rejected",
        ALERTS_FILE=str(tmp_path / "alerts.yaml"),
        ALERTS_INTERVAL_S="1",
        **keys,
    )
    settings = Settings.from_environment(environment)
    client = dynamodb_client(settings)
    make_tables(client, tables(settings)[:3])
    yield World(environment, tmp_path, client, settings)
    client.close()


def await_posted(world: World, receiver: AlertReceiver, alerts: int) -> None:
    until(
        lambda: len(receiver.taken()) == alerts and world.deliveries() == {Delivery.POSTED},
        lambda: f"{alerts} alerts are posted: {receiver.ids()}, {world.alerts()}",
        timeout_s=POSTED_S,
    )


def test_a_crossing_is_posted_once_signed_and_not_again_after_a_restart(world: World) -> None:
    with receiving() as receiver:
        with world.runner(receiver.url) as process:
            world.use("9")
            world.use("1.5")
            await_posted(world, receiver, 1)
            assert (world.folder / "home" / "alerts" / "alive").exists()
            code, seconds = process.stop()
            assert (code, seconds < 15) == (0, True)
            assert all(SECRET not in str(line) and "/hook" not in str(line) for line in json_lines(process.log))
        (post,) = receiver.posts
        assert post.signed
        assert (post.content["type"], post.content["data"]["usage"]) == ("usage.alert.crossed", 10.5)
        assert {post.message_id} == world.ids()
        with world.runner(receiver.url):
            world.use("10")
            await_posted(world, receiver, 2)
        assert len(receiver.posts) == 2
        assert {alert.crossing.threshold for alert in world.alerts()} == {Decimal(10), Decimal(20)}


def test_what_is_not_taken_comes_again_the_same_until_it_is(world: World) -> None:
    with receiving() as receiver, world.runner(receiver.url):
        receiver.statuses = [500, 302]
        world.use("10")
        await_posted(world, receiver, 1)
        assert [post.answered for post in receiver.posts] == [500, 302, 204]
        assert len({(post.message_id, post.body) for post in receiver.posts}) == 1
        assert all(post.signed for post in receiver.posts)


def test_a_receiver_that_hangs_or_is_away_holds_up_no_look_and_loses_nothing(world: World) -> None:
    with receiving() as receiver:
        port = int(receiver.url.rpartition(":")[2].partition("/")[0])
        with world.runner(receiver.url):
            receiver.statuses = [None]
            world.use("10")
            until(lambda: receiver.posts, "the first post hangs", timeout_s=POSTED_S)
            world.use("10")
            until(lambda: len(world.alerts()) == 2, "the second is recorded all the same", timeout_s=POSTED_S)
            await_posted(world, receiver, 2)
    assert len(receiver.posts) == 3
    (world.folder / "alerts.yaml").write_text(TEXT.replace("20]", "20, 30]"))
    with world.runner(f"http://127.0.0.1:{port}/hook") as process:
        world.use("10")
        until(lambda: "was not posted to 127.0.0.1" in process.text(), "nobody is there", timeout_s=POSTED_S)
        with receiving(port) as back:
            until(lambda: world.deliveries() == {Delivery.POSTED}, "it is back", timeout_s=POSTED_S)
            (post,) = back.posts
            assert post.content["data"]["threshold"] == 30


def test_a_kill_between_the_record_and_the_post_loses_none_and_changes_no_id(world: World) -> None:
    with receiving() as receiver:
        receiver.statuses = [None]
        with world.runner(receiver.url) as process:
            world.use("20")
            until(lambda: receiver.posts, "the first of two posts hangs", timeout_s=POSTED_S)
            assert len(world.alerts()) == 2  # the other one has not been tried yet
            process.process.send_signal(signal.SIGKILL)
            process.process.wait()
        recorded = world.alerts()
        assert world.deliveries() == {Delivery.PENDING}
        with world.runner(receiver.url):
            await_posted(world, receiver, 2)
        assert [alert.crossing for alert in world.alerts()] == [alert.crossing for alert in recorded]
        assert set(receiver.ids()) == receiver.taken() == world.ids()
        assert len({(post.message_id, post.body) for post in receiver.posts}) == 2


def test_without_a_url_alerts_are_recorded_alone(world: World) -> None:
    with world.runner(None):
        world.use("10")
        until(world.alerts, "it is recorded", timeout_s=POSTED_S)
    assert world.alerts()[0].crossed is None


def test_what_cannot_be_used_ends_with_one_line(world: World) -> None:
    code, output, errors = ran([METERING, "alerts", "run"], {**world.environment, "ALERTS_FILE": ""})
    assert (code, output) == (1, "")
    assert errors.startswith("metering: ALERTS_FILE='' can't be used: allowed: a file of alerts")
    (world.folder / "alerts.yaml").write_text("alerts: 1")
    code, _, errors = ran([METERING, "alerts", "run"], world.environment)
    assert (code, errors.count("\n")) == (1, 1)
    assert "alerts.yaml:1:9: the number 1 stands here" in errors
