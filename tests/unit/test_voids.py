"""POST …/events/{event_id}/void on a real pipeline and in-memory tables: out of total and window, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from billing import voiding
from billing.app import create_app
from metering.api_keys import Scope
from metering.claims import Claim, EventContent
from metering.errors import InvalidEventError, StoreUnavailableError
from metering.meters import Aggregation
from metering.ports import RejectedEvent
from metering.readings import Reading
from metering.rows import event_claim_key, place, window_key
from metering.settings import Settings
from metering.voids import TEXT_LENGTH_MAX, VoidRequest, parse_void
from tests.builders import NOW, at, shard
from tests.unit.collector_support import settings_with
from tests.unit.counting_world import EVENT, World
from tests.unit.openapi_support import KEY, bearer, key_file

LATER = NOW + timedelta(minutes=5)
CLAIM = event_claim_key("tenant-123", "req-1")
ASKED = {"by": "ana@example.com", "reason": "sent by a test run"}
ONE = {**EVENT, "event_id": "req-1"}
WINDOW = window_key("tenant-123", "api_calls", datetime.fromisoformat("2024-01-15T10:00:00Z"), 60)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World, settings: Settings) -> FlaskClient:
    return client_of(world.tables, world, settings)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conflicts are tried again at once."""
    monkeypatch.setattr("time.sleep", lambda _: None)


def client_of(tables: Any, world: World, settings: Settings) -> FlaskClient:
    return create_app(tables, settings, now=lambda: world.now).test_client()


def void(client: FlaskClient, event_id: str = "req-1", body: object = ASKED, **request: Any) -> TestResponse:
    path = f"/v1/tenants/{request.pop('tenant_id', 'tenant-123')}/events/{quote(event_id, safe='')}/void"
    return client.post(path, json=body, **request)


def voided(answer: TestResponse) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    return json.loads(answer.data, parse_float=str, parse_int=str)


def refused(answer: TestResponse) -> tuple[int, str]:
    assert answer.content_type == "application/problem+json"
    assert answer.json is not None
    return answer.status_code, answer.json["code"]


def sums(world: World) -> tuple[tuple[Decimal, int], dict[str, Decimal]]:
    return world.total(), world.windows()


# ── What is taken out ────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_taken_out_of_total_and_window_and_the_answer_says_who_and_why(client: FlaskClient, world: World) -> None:
    world.put({**ONE, "value": "0.10"}, {**EVENT, "value": "7"})
    found = voided(void(client))
    assert (found["status"], found["value"], found["duplicates"]) == ("voided", "0.1", "0")
    assert (found["voided_at"], found["voided_by"], found["void_reason"]) == (
        "2024-01-15T10:30:00.000Z",
        ASKED["by"],
        ASKED["reason"],
    )
    assert found["as_of"] == "2024-01-15T10:30:00.000Z"
    assert sums(world) == ((Decimal(7), 1), {WINDOW.sk: Decimal(7)})
    assert voided(client.get("/v1/tenants/tenant-123/events/req-1")) == found


def test_the_first_void_stands_whoever_asks_again(client: FlaskClient, world: World) -> None:
    world.put(ONE)
    first = voided(void(client))
    world.at(LATER)
    for again in (ASKED, {"by": "bob", "reason": "another"}):
        found = voided(void(client, body=again))
        assert {**found, "lag_ms": first["lag_ms"]} == first
    assert sums(world) == ((Decimal(0), 0), {WINDOW.sk: Decimal(0)})


def test_a_retry_of_a_voided_event_is_a_duplicate_and_a_replay_nothing_at_all(
    client: FlaskClient, world: World
) -> None:
    world.put(ONE)
    voided(void(client))
    world.put(ONE, partition=63)
    world.put(ONE)
    assert sums(world) == ((Decimal(0), 0), {WINDOW.sk: Decimal(0)})
    found = voided(client.get("/v1/tenants/tenant-123/events/req-1"))
    assert (found["status"], found["duplicates"]) == ("voided", "2")
    world._consumed = 0
    world.consume()
    assert sums(world) == ((Decimal(0), 0), {WINDOW.sk: Decimal(0)})
    assert sum(shard.counted for shard in world.tables.progress("usage-events")) == 1


def test_an_event_that_came_again_is_one_count_and_the_answer_says_how_often(client: FlaskClient, world: World) -> None:
    world.put(ONE, ONE, {**ONE, "value": "11"})
    found = voided(void(client))
    assert (found["duplicates"], found["conflicts"]) == ("1", "1")
    assert [row["reason"] for row in found["rejections"]] == ["event_id_conflict"]
    assert world.total() == (Decimal(0), 0)


@pytest.mark.parametrize("received_at", ["2024-01-15T08:59:59Z", None])
def test_an_event_without_a_timestamp_leaves_the_window_that_it_came_into(
    client: FlaskClient, world: World, received_at: str | None
) -> None:
    fields = {name: value for name, value in ONE.items() if name != "timestamp"}
    world.put(fields if received_at is None else {**fields, "received_at": received_at})
    [window] = world.windows()
    voided(void(client))
    assert window.endswith("T10" if received_at is None else "T08")
    assert world.windows() == {window: Decimal(0)}


def test_a_source_is_part_of_the_identity(client: FlaskClient, world: World) -> None:
    world.put({**ONE, "source": "/a"})
    assert refused(void(client)) == (404, "event_not_found")
    assert refused(void(client, query_string={"source": "/b"})) == (404, "event_not_found")
    assert voided(void(client, query_string={"source": "/a"}))["source"] == "/a"
    assert world.total() == (Decimal(0), 0)


@pytest.mark.parametrize("event_id", ["void", "a/void", "void/", "/void", "a/b", "%2F", "ü ?#", "x/void/void"])
def test_an_id_of_any_printable_characters_is_voided_percent_encoded(
    client: FlaskClient, world: World, event_id: str
) -> None:
    world.put({**EVENT, "event_id": event_id})
    assert voided(void(client, event_id))["event_id"] == event_id
    assert world.total() == (Decimal(0), 0)


# ── What is not there to be taken out ────────────────────────────────────────────────────────────────────────────────


def test_what_was_never_counted_is_refused_and_says_why(client: FlaskClient, world: World) -> None:
    world.put({**ONE, "value": "-1"}, {**EVENT, "event_id": "req-2"})
    before = sums(world)
    assert refused(void(client, "nobody")) == (404, "event_not_found")
    assert refused(void(client, "req-2", tenant_id="other")) == (404, "event_not_found")
    assert refused(void(client)) == (409, "event_rejected")
    assert sums(world) == before


def test_an_event_that_is_claimed_and_not_counted_yet_is_pending(client: FlaskClient, world: World) -> None:
    claim = Claim(
        CLAIM, place(at(1), 0), EventContent("api_calls", Decimal(10), EVENT["timestamp"]), NOW, "2024-01-15T10"
    )
    world.tables.ledger.claim(shard(), [claim], now=NOW)
    answer = void(client)
    assert refused(answer) == (409, "event_pending")
    assert int(answer.headers["Retry-After"]) > 0
    assert world.tables.ledger.claims[CLAIM].voided_at is None


def test_a_receipt_and_what_only_a_batch_has_claimed_have_no_claim_of_their_own(settings: Settings) -> None:
    world = World(claim_events=False)
    client = client_of(world.tables, world, settings)
    where = world.put({"batch_id": "b", "events": [ONE]})
    assert refused(void(client, f"kinesis:{where.shard_id}:{where.sequence_number}:0")) == (409, "not_voidable")
    assert refused(void(client)) == (404, "event_not_found")
    assert world.total() == (Decimal(10), 1)


@pytest.mark.parametrize(
    "changed", [{"window": None}, {"window": "2024-01-15T09"}, {"owner": "someone"}, {"content": None}]
)
def test_a_claim_that_does_not_tell_enough_is_not_guessed_from(
    client: FlaskClient, world: World, changed: dict[str, Any]
) -> None:
    world.put({**EVENT, "timestamp": "2024-01-15T09:00:00Z"}, ONE)
    claim = world.tables.ledger.claims[CLAIM]
    if "window" in changed:
        claim.window = changed["window"]  # it holds another event, up to whose position it was applied
    else:
        claim.holder = replace(claim.holder, **changed)
    before = sums(world)
    answer = void(client)
    assert refused(answer) == (409, "not_voidable")
    assert ("older version" in answer.text) == (changed == {"window": None})
    assert sums(world) == before
    assert claim.voided_at is None


def test_an_event_that_was_claimed_and_then_rejected_is_not_taken_out_of_what_others_counted(
    client: FlaskClient, world: World
) -> None:
    """The consumer died between the two, and EVENT_MAX_AGE_DAYS was changed before the record came again."""
    world.put({**EVENT, "event_id": "req-2"})
    where = world.put(ONE)
    before = world.total()
    rejected = RejectedEvent(where.position, where.index, "timestamp_too_old", "too old", b"{}", NOW, CLAIM)
    world.tables.reject(shard(), rejected, now=NOW)
    answer = void(client)
    assert refused(answer) == (409, "not_voidable")
    assert "rejected" in answer.text
    assert world.total() == before
    assert world.tables.ledger.claims[CLAIM].voided_at is None
    assert voided(void(client, "req-2"))["status"] == "voided"


@pytest.mark.parametrize("row", ["METRIC#api_calls", WINDOW.sk])
@pytest.mark.parametrize("values", [{"events": 0}, {"usage": Decimal(9)}, {"applied": {}}])
def test_a_row_that_does_not_hold_the_event_is_left_alone_and_so_is_the_other(
    client: FlaskClient, world: World, row: str, values: dict[str, Any]
) -> None:
    world.put(ONE)
    key = WINDOW._replace(sk=row)
    world.tables.rows[key] = replace(world.tables.rows[key], **values)
    before = sums(world)
    assert refused(void(client)) == (409, "not_voidable")
    assert sums(world) == before
    assert world.tables.ledger.claims[CLAIM].voided_at is None


def test_nothing_is_taken_out_of_a_maximum(client: FlaskClient, world: World) -> None:
    world.put(ONE)
    world.tables.keep_reading(WINDOW, Reading(Aggregation.MAX, Decimal(10), "2024-01-15T10:00:00.000000Z#x"))
    answer = void(client)
    assert refused(answer) == (409, "not_voidable")
    assert "maximum" in answer.text
    assert sums(world)[0] == (Decimal(10), 1)


# ── A store that fails, and others who are quicker ───────────────────────────────────────────────────────────────────


class Wire:
    """Tables whose voids meet what `fates` says, one after the other: before or after they are done."""

    def __init__(self, world: World, *fates: Callable[[Callable[[], Any]], Any]) -> None:
        self._tables = world.tables
        self.fates = list(fates)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)

    def void(self, *args: Any, **kwargs: Any) -> Any:
        done = lambda: self._tables.void(*args, **kwargs)  # noqa: E731
        return self.fates.pop(0)(done) if self.fates else done()


def answer_lost(done: Callable[[], Any]) -> Any:
    done()
    raise StoreUnavailableError("the answer is lost")


def conflict(_: Callable[[], Any]) -> Any:
    raise StoreUnavailableError("a conflict")


@pytest.mark.parametrize(
    "fates", [[answer_lost], [conflict], [conflict, answer_lost], [conflict] * (voiding.ATTEMPTS_MAX - 1)]
)
def test_a_lost_answer_and_a_conflict_are_tried_again_and_count_once(
    world: World, settings: Settings, fates: list[Any]
) -> None:
    world.put(ONE, EVENT)
    assert voided(void(client_of(Wire(world, *fates), world, settings)))["status"] == "voided"
    assert sums(world) == ((Decimal(10), 1), {WINDOW.sk: Decimal(10)})


def test_a_store_that_stays_away_is_a_503_that_may_be_sent_again(world: World, settings: Settings) -> None:
    world.put(ONE)
    client = client_of(Wire(world, *[conflict] * voiding.ATTEMPTS_MAX), world, settings)
    answer = void(client)
    assert refused(answer) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert world.total() == (Decimal(10), 1)
    assert voided(void(client))["status"] == "voided"


def test_of_two_at_once_the_quicker_one_stands(world: World, settings: Settings) -> None:
    world.put(ONE)
    other = client_of(world.tables, world, settings)

    def overtaken(done: Callable[[], Any]) -> Any:
        voided(void(other, body={"by": "bob", "reason": "quicker"}))
        return done()

    assert voided(void(client_of(Wire(world, overtaken), world, settings)))["voided_by"] == "bob"
    assert sums(world) == ((Decimal(0), 0), {WINDOW.sk: Decimal(0)})


def test_a_claim_that_expires_meanwhile_is_not_found(world: World, settings: Settings) -> None:
    world.put(ONE)

    def expired(done: Callable[[], Any]) -> Any:
        del world.tables.ledger.claims[CLAIM]
        return done()

    assert refused(void(client_of(Wire(world, expired), world, settings))) == (404, "event_not_found")
    assert world.total() == (Decimal(10), 1)


def test_a_claim_that_another_place_has_taken_meanwhile_is_looked_at_again(world: World, settings: Settings) -> None:
    world.put(ONE)

    def taken(done: Callable[[], Any]) -> Any:
        del world.tables.ledger.claims[CLAIM]
        world.put(ONE, partition=63)
        return done()

    client = client_of(Wire(world, taken), world, settings)
    assert refused(void(client)) == (409, "event_pending"), "the progress was read before it was counted"
    assert voided(void(client))["shard"] == "shardId-000000000001"
    assert world.total() == (Decimal(10), 1)


# ── Keys and bodies ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_needs_the_scope_and_the_tenant_and_its_fingerprint_is_kept(world: World, tmp_path: Path) -> None:
    world.put(ONE)
    lines = ((KEY, "tenant-123", Scope.VOID), ("b" * 43, "tenant-123", "read,write"), ("c" * 43, "other", Scope.VOID))
    client = client_of(world.tables, world, settings_with(API_KEYS_FILE=key_file(tmp_path, *lines)))
    assert refused(void(client)) == (401, "unauthorized")
    assert refused(void(client, headers=bearer("b" * 43))) == (403, "forbidden_scope")
    assert refused(void(client, headers=bearer("c" * 43))) == (403, "forbidden_tenant")
    assert refused(client.get("/v1/tenants/tenant-123/events/req-1", headers=bearer(KEY))) == (403, "forbidden_scope")
    found = voided(void(client, headers=bearer(KEY)))
    kept = world.tables.ledger.claims[CLAIM].voided_key
    assert kept == Path(tmp_path / "keys").read_text().split()[0][:12]
    assert kept not in json.dumps(found)


def test_without_keys_no_fingerprint_is_kept(client: FlaskClient, world: World) -> None:
    world.put(ONE)
    voided(void(client))
    assert world.tables.ledger.claims[CLAIM].voided_key is None


@pytest.mark.parametrize(
    ("body", "media_type", "problem"),
    [
        (b"", "application/json", (400, "malformed_json")),
        (b"{", "application/json", (400, "malformed_json")),
        (b'{"by": "a", "by": "b", "reason": "c"}', "application/json", (400, "malformed_json")),
        (b"[]", "application/json", (422, "invalid_void")),
        (b'{"by": "a"}', "application/json", (422, "missing_field")),
        (b'{"reason": "a"}', "application/json", (422, "missing_field")),
        (b'{"by": "a", "reason": "b", "force": true}', "application/json", (422, "unknown_field")),
        (b'{"by": "", "reason": "b"}', "application/json", (422, "invalid_by")),
        (b'{"by": 1, "reason": "b"}', "application/json", (422, "invalid_by")),
        (b'{"by": null, "reason": "b"}', "application/json", (422, "invalid_by")),
        (b'{"by": "a", "reason": "b\\nc"}', "application/json", (422, "invalid_reason")),
        (json.dumps({"by": "a", "reason": "b" * 257}).encode(), "application/json", (422, "invalid_reason")),
        (b'{"by": "a", "reason": "b"}', "text/plain", (415, "unsupported_media_type")),
        (b" " * (voiding.BODY_BYTES_MAX + 1), "application/json", (413, "too_large")),
    ],
)
def test_a_body_that_does_not_say_who_and_why_voids_nothing(
    client: FlaskClient, world: World, body: bytes, media_type: str, problem: tuple[int, str]
) -> None:
    world.put(ONE)
    path = "/v1/tenants/tenant-123/events/req-1/void"
    assert refused(client.post(path, data=body, content_type=media_type)) == problem
    assert world.total() == (Decimal(10), 1)


def test_the_longest_texts_fit_into_a_body_escaped_throughout(client: FlaskClient, world: World) -> None:
    world.put(ONE)
    texts = {"by": "\U0001f600" * TEXT_LENGTH_MAX, "reason": "\U0001f600" * TEXT_LENGTH_MAX}
    assert voided(client.post("/v1/tenants/tenant-123/events/req-1/void", json=texts))["voided_by"] == texts["by"]


@examples(max_examples=50)
@given(st.dictionaries(st.sampled_from(["by", "reason", "why"]), st.text(max_size=3) | st.none() | st.integers()))
def test_a_void_is_parsed_or_refused_and_nothing_else(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    try:
        parsed = parse_void(body)
    except InvalidEventError:
        return
    assert parsed == VoidRequest(**fields)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/tenants/a%20b/events/x/void", 422, "invalid_tenant_id"),
        ("/v1/tenants/t/events/kinesis:x/void", 422, "invalid_event_id"),
        ("/v1/tenants/t/events/x/void?source=a&source=b", 400, "repeated_parameter"),
        ("/v1/tenants/t/events/x/void?sauce=a", 400, "unknown_parameter"),
        ("/v1/tenants/t/events/kinesis:shardId-000000000000:1:0/void?source=a", 400, "unknown_parameter"),
        ("/v1/tenants/t/events//void", 405, "method_not_allowed"),
        ("/v1/tenants/t/events/x", 405, "method_not_allowed"),
    ],
)
def test_what_no_event_can_be_called_is_refused(client: FlaskClient, path: str, status: int, code: str) -> None:
    assert refused(client.post(path, json=ASKED)) == (status, code)
