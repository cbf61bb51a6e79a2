"""GET /v1/tenants/{t}/events/{event_id}: what has become of an event, on the in-memory tables."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from billing.app import create_app
from billing.events import REJECTIONS_MAX
from metering.claims import Claim, EventContent
from metering.events import parse_event
from metering.rows import event_claim_key, place
from tests.builders import CREATED_AT, NOW, shard
from tests.unit.counting_world import EVENT, World

if TYPE_CHECKING:
    from flask.testing import FlaskClient

    from metering.places import StreamPlace
    from metering.settings import Settings

LATER = NOW + timedelta(minutes=5)
KEY = event_claim_key("tenant-123", "req-1")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World, settings: Settings) -> FlaskClient:
    return create_app(world.tables, settings, now=lambda: world.now).test_client()


def asked(client: FlaskClient, event_id: str, tenant_id: str = "tenant-123", **query: str) -> Any:
    path = f"/v1/tenants/{quote(tenant_id, safe='')}/events/{quote(event_id, safe='')}"
    answer = client.get(path, query_string=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    return json.loads(answer.data, parse_float=str, parse_int=str)


def refused(client: FlaskClient, path: str) -> tuple[int, str]:
    answer = client.get(path)
    assert answer.content_type == "application/problem+json"
    assert answer.json is not None
    return answer.status_code, answer.json["code"]


def receipt(where: StreamPlace) -> str:
    return f"kinesis:{where.shard_id}:{where.sequence_number}:{where.index}"


def test_a_counted_event_says_what_it_is_and_where_and_when_it_was_counted(client: FlaskClient, world: World) -> None:
    where = world.put({**EVENT, "value": "0.10", "event_id": "req-1"})
    world.now += timedelta(seconds=2)
    assert asked(client, "req-1") == {
        "tenant_id": "tenant-123",
        "event_id": "req-1",
        "status": "counted",
        "metric": "api_calls",
        "value": "0.1",
        "timestamp": "2024-01-15T10:00:00Z",
        "counted_at": "2024-01-15T10:30:00.000Z",
        "shard": where.shard_id,
        "position": where.sequence_number,
        "index": "0",
        "duplicates": "0",
        "conflicts": "0",
        "last_repeat_at": None,
        "voided_at": None,
        "voided_by": None,
        "void_reason": None,
        "rejections": [],
        "more_rejections": False,
        "as_of": "2024-01-15T10:30:00.000Z",
        "lag_ms": "2000",
    }


def test_a_value_is_exact_to_the_last_digit(client: FlaskClient, world: World) -> None:
    world.put({**EVENT, "value": "999999999999999.999999999", "event_id": "req-1"})
    text = client.get("/v1/tenants/tenant-123/events/req-1").text
    assert '"value":999999999999999.999999999,' in text


def test_an_event_sent_without_a_timestamp_has_none(client: FlaskClient, world: World) -> None:
    world.put({name: field for name, field in EVENT.items() if name != "timestamp"} | {"event_id": "req-1"})
    assert asked(client, "req-1")["timestamp"] is None


def test_it_says_how_often_an_event_came_again_and_when_last(client: FlaskClient, world: World) -> None:
    world.put({**EVENT, "event_id": "req-1"})
    world.put({**EVENT, "event_id": "req-1"}, partition=63)
    world.at(LATER).put({**EVENT, "event_id": "req-1"})
    found = asked(client, "req-1")
    assert (found["status"], found["duplicates"], found["conflicts"]) == ("counted", "2", "0")
    assert found["last_repeat_at"] == "2024-01-15T10:35:00.000Z"


def test_a_conflict_leaves_the_event_counted_and_is_listed(client: FlaskClient, world: World) -> None:
    world.put({**EVENT, "event_id": "req-1"})
    where = world.put({**EVENT, "event_id": "req-1", "value": "11"})
    found = asked(client, "req-1")
    assert (found["status"], found["value"], found["duplicates"], found["conflicts"]) == ("counted", "10", "0", "1")
    assert found["rejections"] == [
        {
            "reason": "event_id_conflict",
            "detail": "the id is held by another event: metric=api_calls, value=10, timestamp=2024-01-15T10:00:00Z",
            "rejected_at": "2024-01-15T10:30:00.000Z",
            "shard": where.shard_id,
            "position": where.sequence_number,
            "index": "0",
            "replayed_at": None,
            "replayed_as": [],
        }
    ]


def test_a_rejected_event_says_why(client: FlaskClient, world: World) -> None:
    world.put({**EVENT, "event_id": "req-1", "value": "-1"})
    found = asked(client, "req-1")
    assert found["status"] == "rejected"
    assert [(row["reason"], row["detail"]) for row in found["rejections"]] == [
        ("negative_value", "value must not be negative")
    ]
    assert "value" not in found


def test_an_event_that_counted_after_it_was_rejected_is_counted(client: FlaskClient, world: World) -> None:
    world.put({**EVENT, "event_id": "req-1", "value": "-1"})
    world.at(LATER).put({**EVENT, "event_id": "req-1", "value": "-2"}, partition=63)
    world.put({**EVENT, "event_id": "req-1"})
    found = asked(client, "req-1")
    assert (found["status"], found["value"]) == ("counted", "10")
    assert [row["rejected_at"] for row in found["rejections"]] == [
        "2024-01-15T10:30:00.000Z",
        "2024-01-15T10:35:00.000Z",
    ]


def test_a_claim_is_pending_until_its_shard_has_been_applied_up_to_it(client: FlaskClient, world: World) -> None:
    before = world.put(EVENT)
    number = int(before.sequence_number)
    content = parse_event({**EVENT, "event_id": "req-1"}, now=NOW)
    claim = Claim(
        KEY,
        place(f"{len(str(number + 1)):03d}{number + 1}", 0),
        EventContent(content.metric, content.value, content.timestamp),
        NOW,
    )
    world.tables.ledger.claim(shard(int(before.shard_id[-1])), [claim], now=NOW)
    found = asked(client, "req-1")
    assert (found["status"], found["counted_at"], found["position"]) == ("pending", None, str(number + 1))
    world.put({**EVENT, "event_id": "req-2"})
    assert asked(client, "req-1")["status"] == "counted"


def test_the_progress_of_another_shard_counts_for_nothing(client: FlaskClient, world: World) -> None:
    claim = Claim(KEY, place("0015", 0), EventContent("m", parse_event(EVENT, now=NOW).value, None), NOW)
    world.tables.ledger.claim(shard(1), [claim], now=NOW)
    assert world.put(EVENT).shard_id == "shardId-000000000000"
    assert asked(client, "req-1")["status"] == "pending"
    world.put(EVENT, partition=63)
    assert asked(client, "req-1")["status"] == "counted"


@pytest.mark.parametrize("position", ["0011", "0569"])
def test_what_an_older_incarnation_of_the_stream_claimed_was_counted_and_a_newer_ones_was_not(
    client: FlaskClient, world: World, position: str
) -> None:
    """Wherever they stand: the position that this one's shard was applied up to lies between the two."""
    world.put(EVENT)
    content = EventContent("m", parse_event(EVENT, now=NOW).value, None)
    for event_id, created_at in (("old", CREATED_AT - timedelta(days=1)), ("new", CREATED_AT + timedelta(days=1))):
        claim = Claim(event_claim_key("tenant-123", event_id), place(position, 0), content, NOW)
        world.tables.ledger.claim(shard(created_at=created_at), [claim], now=NOW)
    assert asked(client, "old")["status"] == "counted"
    assert asked(client, "new")["status"] == "pending"


def test_a_voided_event_is_voided(client: FlaskClient, world: World) -> None:
    world.put({**EVENT, "event_id": "req-1"})
    world.tables.ledger.claims[KEY].voided_at = LATER
    found = asked(client, "req-1")
    assert (found["status"], found["voided_at"]) == ("voided", "2024-01-15T10:35:00.000Z")


def test_a_ledger_row_that_cannot_be_read_makes_no_event_counted(client: FlaskClient, world: World) -> None:
    world.put({**EVENT, "event_id": "req-1"})
    claim = world.tables.ledger.claims[KEY]
    claim.holder = replace(claim.holder, owner="someone")
    assert asked(client, "req-1")["status"] == "unknown"


def test_an_event_never_seen_is_unknown_and_so_is_another_tenants(client: FlaskClient, world: World) -> None:
    world.put({**EVENT, "event_id": "req-1"})
    for found in (asked(client, "req-2"), asked(client, "req-1", tenant_id="other")):
        assert found["status"] == "unknown"
        assert found["rejections"] == []
        assert found["as_of"] == "2024-01-15T10:30:00.000Z"


def test_a_source_is_part_of_the_identity(client: FlaskClient, world: World) -> None:
    world.put({**EVENT, "event_id": "1", "source": "/a"})
    assert asked(client, "1", source="/a")["status"] == "counted"
    assert asked(client, "1", source="/a")["source"] == "/a"
    assert asked(client, "1", source="/b")["status"] == "unknown"
    assert asked(client, "1")["status"] == "unknown"


@pytest.mark.parametrize(
    "event_id",
    ["a/b", "/a", "a/", "//", "a%2Fb", "%", "100%", "a b", "ü", "?x=1#y", "a+b", "\U0001f600" * 128, "x/void", ".;,"],
)
def test_an_id_of_any_printable_characters_is_asked_for_percent_encoded(
    client: FlaskClient, world: World, event_id: str
) -> None:
    world.put({**EVENT, "event_id": event_id})
    found = asked(client, event_id)
    assert (found["event_id"], found["status"]) == (event_id, "counted")


def test_only_the_last_of_many_rejections_are_shown(client: FlaskClient, world: World) -> None:
    for _ in range(REJECTIONS_MAX):
        world.put({**EVENT, "event_id": "req-1", "value": "-1"})
    assert asked(client, "req-1")["more_rejections"] is False
    last = world.put({**EVENT, "event_id": "req-1", "value": "-1"})
    found = asked(client, "req-1")
    assert found["more_rejections"] is True
    assert len(found["rejections"]) == REJECTIONS_MAX
    assert found["rejections"][-1]["position"] == last.sequence_number


# ── Receipts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_receipt_is_counted_when_its_shard_has_been_applied_up_to_it(client: FlaskClient, world: World) -> None:
    where = world.put(EVENT)
    assert asked(client, receipt(where)) == {
        "tenant_id": "tenant-123",
        "event_id": receipt(where),
        "status": "counted",
        "shard": where.shard_id,
        "position": where.sequence_number,
        "index": "0",
        "rejections": [],
        "more_rejections": False,
        "as_of": "2024-01-15T10:30:00.000Z",
        "lag_ms": "0",
    }
    number = int(where.sequence_number)
    assert asked(client, f"kinesis:{where.shard_id}:{number + 1}:0")["status"] == "pending"
    assert asked(client, f"kinesis:{where.shard_id}:9{number}:0")["status"] == "pending"
    assert asked(client, "kinesis:shardId-000000000001:1:0")["status"] == "pending"
    assert asked(client, "kinesis:shardId-000000000007:1:0")["status"] == "unknown"


def test_a_receipt_of_a_rejected_event_is_rejected_and_its_neighbours_are_not(
    client: FlaskClient, world: World
) -> None:
    where = world.put({"batch_id": "b", "events": [EVENT, {**EVENT, "value": "-1"}, EVENT]})
    found = [asked(client, receipt(replace(where, index=index))) for index in range(3)]
    assert [each["status"] for each in found] == ["counted", "rejected", "counted"]
    assert [row["reason"] for row in found[1]["rejections"]] == ["negative_value"]


def test_a_rejected_event_that_names_its_tenant_is_shown_to_no_other(client: FlaskClient, world: World) -> None:
    where = world.put({**EVENT, "value": "-1"})
    found = asked(client, receipt(where), tenant_id="other")
    assert (found["status"], found["rejections"]) == ("unknown", [])
    undecodable = world.put(b"\xff")
    assert asked(client, receipt(undecodable), tenant_id="other")["status"] == "rejected"


# ── A consumer that goes on while an answer is made ──────────────────────────────────────────────────────────────────


class Overtaken:
    """A reader behind whose first read the consumer applies records of both shards, and says so."""

    def __init__(self, world: World, event: dict[str, str]) -> None:
        self._world = world
        self._event = event
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        read = getattr(self._world.tables, name)

        def overtaken(*args: Any, **kwargs: Any) -> Any:
            found = read(*args, **kwargs)
            self.reads += 1
            if self.reads == 1:
                self._world.at(LATER).put(EVENT, partition=63)
                self._world.put(self._event)
            return found

        return overtaken


def overtaken_answer(world: World, settings: Settings, event: dict[str, str], event_id: str) -> Any:
    reader = Overtaken(world, event)
    found = asked(create_app(reader, settings, now=lambda: LATER).test_client(), event_id)  # type: ignore[arg-type]
    assert reader.reads > 1
    return found


def test_as_of_never_speaks_of_an_event_that_is_unknown(world: World, settings: Settings) -> None:
    found = overtaken_answer(world, settings, {**EVENT, "event_id": "req-1"}, "req-1")
    assert found["status"] != "unknown" or found["as_of"] < "2024-01-15T10:35:00.000Z"
    assert asked(create_app(world.tables, settings, now=lambda: LATER).test_client(), "nobody")["as_of"] == (
        "2024-01-15T10:35:00.000Z"
    )


def test_a_receipt_is_never_counted_while_its_event_is_being_rejected(world: World, settings: Settings) -> None:
    first = world.put(EVENT)
    second = f"kinesis:{first.shard_id}:{int(first.sequence_number) + 2}:0"
    found = overtaken_answer(world, settings, {**EVENT, "value": "-1"}, second)
    assert found["status"] in {"pending", "rejected"}
    assert asked(create_app(world.tables, settings).test_client(), second)["status"] == "rejected"


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/tenants/a%20b/events/x", 422, "invalid_tenant_id"),
        ("/v1/tenants/t/events/" + "x" * 129, 422, "invalid_event_id"),
        ("/v1/tenants/t/events/a%07b", 422, "invalid_event_id"),
        ("/v1/tenants/t/events/kinesis:", 422, "invalid_event_id"),
        ("/v1/tenants/t/events/kinesis:x", 422, "invalid_event_id"),
        ("/v1/tenants/t/events/x?source=" + "s" * 1025, 422, "invalid_source"),
        ("/v1/tenants/t/events/x?source=a&source=b", 400, "repeated_parameter"),
        ("/v1/tenants/t/events/x?sauce=a", 400, "unknown_parameter"),
        ("/v1/tenants/t/events/kinesis:shardId-000000000000:1:0?source=a", 400, "unknown_parameter"),
        ("/v1/tenants/t/events/", 404, "not_found"),
        ("/v1/tenants//events/x", 404, "not_found"),
    ],
)
def test_what_no_event_can_be_called_is_refused(client: FlaskClient, path: str, status: int, code: str) -> None:
    assert refused(client, path) == (status, code)


def test_only_reading_is_allowed(client: FlaskClient) -> None:
    answer = client.delete("/v1/tenants/t/events/x")
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
