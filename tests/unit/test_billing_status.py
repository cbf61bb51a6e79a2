"""GET /v1/status: the shards, their owners and how far they are; for those who may see all tenants."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from billing.app import create_app
from metering.memory import MemoryTables
from metering.positions import position_of
from metering.settings import Settings
from tests.builders import NOW, outcome, shard
from tests.unit.collector_support import settings_with
from tests.unit.openapi_support import KEY, Document, bearer, key_file


def tables_of_two_shards() -> MemoryTables:
    """Return tables of a shard that was counted, and of a closed one."""
    tables = MemoryTables()
    tables.open_shard(shard(0), complete_until=NOW - timedelta(seconds=5), now=NOW)
    outcomes = [outcome(1, counted=3, duplicates=1, arrived_at=NOW - timedelta(seconds=3)), outcome(2, rejected=1)]
    tables.record_progress(shard(0), outcomes, complete_until=NOW - timedelta(seconds=2), now=NOW)
    tables.open_shard(shard(1), complete_until=NOW - timedelta(hours=1), now=NOW)
    tables.close_shard(shard(1), now=NOW)
    tables.leases = {shard(0).shard_id: "aggregator-1", "shardId-000000000009": "aggregator-2"}
    return tables


def test_the_status_is_the_object_of_the_api(settings: Settings) -> None:
    app = create_app(tables_of_two_shards(), settings, now=lambda: NOW)
    answer = app.test_client().get("/v1/status")
    nothing = dict.fromkeys(("records", "events", "counted", "duplicates", "rejected"), 0)
    assert answer.json == {
        "stream": "usage-events",
        "shards": [
            {
                "shard_id": "shardId-000000000000",
                "owner": "aggregator-1",
                "position": "97",
                "records": 2,
                "events": 6,
                "counted": 4,
                "duplicates": 1,
                "rejected": 1,
                "newest_arrival_at": "2024-01-15T10:30:00.000Z",
                "complete_until": "2024-01-15T10:29:58.000Z",
                "heartbeat_at": "2024-01-15T10:30:00.000Z",
                "closed": False,
                "lag_ms": 2000,
            },
            {
                "shard_id": "shardId-000000000001",
                "owner": None,
                "position": None,
                **nothing,
                "newest_arrival_at": None,
                "complete_until": "2024-01-15T09:30:00.000Z",
                "heartbeat_at": None,
                "closed": True,
                "lag_ms": None,
            },
        ],
        "as_of": "2024-01-15T10:29:58.000Z",
        "lag_ms": 2000,
    }
    Document.of(app).assert_documented(answer, "/v1/status", "get")


def test_a_shard_that_nothing_is_known_of_has_no_lag_and_holds_as_of_back(settings: Settings) -> None:
    tables = tables_of_two_shards()
    tables.open_shard(shard(2), complete_until=None, now=NOW)
    answer = create_app(tables, settings, now=lambda: NOW).test_client().get("/v1/status").get_json()
    assert (answer["as_of"], answer["lag_ms"]) == (None, None)
    assert [each["lag_ms"] for each in answer["shards"]] == [2000, None, None]


def test_a_position_is_shown_as_the_sequence_number(settings: Settings) -> None:
    tables = tables_of_two_shards()
    key = ("usage-events", shard(0).shard_id)
    tables.shards[key] = replace(tables.shards[key], position=position_of("4" * 56))
    answer = create_app(tables, settings, now=lambda: NOW).test_client().get("/v1/status").get_json()
    assert answer["shards"][0]["position"] == "4" * 56


def test_a_stream_that_was_never_read_has_no_shards(settings: Settings) -> None:
    answer = create_app(MemoryTables(), settings, now=lambda: NOW).test_client().get("/v1/status")
    assert answer.json == {"stream": "usage-events", "shards": [], "as_of": None, "lag_ms": None}
    refused = create_app(MemoryTables(), settings).test_client().get("/v1/status?shard=1")
    assert refused.get_json()["code"] == "unknown_parameter"


def test_it_is_shown_to_keys_for_all_tenants_alone(tmp_path: Path) -> None:
    one, write = "b" * 43, "c" * 43
    keys = key_file(tmp_path, (KEY, "*", "read"), (one, "tenant-123", "read"), (write, "*", "write"))
    app = create_app(tables_of_two_shards(), settings_with(API_KEYS_FILE=keys), now=lambda: NOW)
    client, document = app.test_client(), Document.of(app)
    answers = [client.get("/v1/status", headers=bearer(key)) for key in (KEY, one, write, "d" * 43)]
    codes = [answer.get_json().get("code") for answer in answers]
    assert codes == [None, "forbidden_tenant", "forbidden_scope", "unauthorized"]
    for answer in answers:
        document.assert_documented(answer, "/v1/status", "get")
