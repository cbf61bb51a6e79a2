"""What `metering rejected` finds and shows."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from click.testing import CliRunner

from metering.errors import InvalidEventError
from metering.places import StreamPlace
from metering.rejected import RejectedRow
from operations import rejected as rows
from operations.cli import metering as command_group
from tests.builders import NOW
from tests.unit.counting_world import EVENT, World


@pytest.fixture
def world() -> World:
    return World()


def names(world: World, wanted: rows.Filter = rows.Filter()) -> list[StreamPlace]:  # noqa: B008 - immutable
    return [row.place for row in rows.found(world.rejected, wanted)]


def bad(**fields: str) -> dict[str, str]:
    return {**EVENT, "value": "-1", **fields}


def test_rows_of_all_shards_come_newest_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PAGE_ROWS", 2)
    places = []
    for number in range(9):
        world.now += timedelta(seconds=1)
        places.append(world.put(bad(), partition=63 * (number % 2)))
    assert names(world) == places[::-1]
    assert {place.shard_id for place in places} == {"shardId-000000000000", "shardId-000000000001"}
    assert names(world, rows.Filter(shard_id="shardId-000000000001")) == places[1::2][::-1]
    assert names(world, rows.Filter(shard_id="shardId-000000000009")) == []


def test_a_filter_takes_what_keeps_all_of_its_conditions(world: World) -> None:
    one = world.put(bad(tenant_id="one"))
    two = world.put({**EVENT, "tenant_id": "two", "valeu": "1"})
    three = world.at(NOW + timedelta(hours=1)).put(b"\xff")
    world.rejected.mark_replayed(one, ["x"], now=NOW)
    assert names(world) == [three, two]
    assert names(world, rows.Filter(replayed=True)) == [three, two, one]
    assert names(world, rows.Filter(tenant_id="two")) == [two]
    assert names(world, rows.Filter(reason="malformed_record")) == [three]
    assert names(world, rows.Filter(tenant_id="two", reason="malformed_record")) == []
    assert names(world, rows.Filter(since=NOW, replayed=True)) == [three, two, one]
    assert names(world, rows.Filter(since=NOW + timedelta(seconds=1))) == [three]


def test_a_line_says_what_a_person_looks_for(world: World) -> None:
    place = world.put(bad(event_id="req-1"))
    line = f"{place.name}  2024-01-15T10:30:00.000Z  negative_value  tenant_id=tenant-123  event_id=req-1  "
    assert rows.line(world.row(place)) == line + "-  value must not be negative"
    world.rejected.mark_replayed(place, ["req-1"], now=NOW)
    assert rows.line(world.row(place)) == line + "replayed 2024-01-15T10:30:00.000Z  value must not be negative"


def test_json_holds_what_is_known(world: World) -> None:
    place = world.put(bad(event_id="req-1"))
    world.rejected.mark_replayed(place, ["req-1"], now=NOW)
    found = json.loads(rows.json_line(world.row(place)))
    assert found["key"] == place.name
    assert found["position"] == place.sequence_number
    assert (found["reason"], found["tenant_id"], found["event_id"]) == ("negative_value", "tenant-123", "req-1")
    assert (found["replayed_at"], found["replayed_as"]) == ("2024-01-15T10:30:00.000Z", ["req-1"])


def test_a_row_in_full_ends_with_its_bytes_as_they_were_written(world: World) -> None:
    text = rows.in_full(world.row(world.put(b'{"tenant_id":"t","metric":"m","value":-1.50,"timestamp":"x"}')))
    assert text.splitlines()[-6:] == [
        "{",
        '  "tenant_id": "t",',
        '  "metric": "m",',
        '  "value": -1.50,',
        '  "timestamp": "x"',
        "}",
    ]
    assert "replayed" not in text


def test_a_replay_that_was_begun_and_not_finished_is_shown(world: World) -> None:
    place = world.put(bad())
    world.rejected.begin_replay(place, b'[{"value":"1"}]', now=NOW)
    assert "replay begun as: [" in rows.in_full(world.row(place))
    world.rejected.mark_replayed(place, ["x"], now=NOW)
    assert "replay begun as" not in rows.in_full(world.row(place))


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\xff\xfe\x00\x1b[2J", r"\xff\xfe\x00\x1b[2J"),
        (b"", ""),
        (b"plain\ntext", r"plain\ntext"),
        ('{"a":"\x9b2J"}'.encode(), '{\n  "a": "\\x9b2J"\n}'),
        ('{"a":"ü"}'.encode(), '{\n  "a": "ü"\n}'),
        (b'{"a":"\xff"}', '{"a":"\\xff"}'),
        (b"[" * 5000, "[" * 5000),
    ],
)
def test_no_bytes_can_do_anything_to_a_terminal(raw: bytes, shown: str) -> None:
    assert rows.pretty(raw) == shown


def test_names_that_an_event_claims_can_do_nothing_to_a_terminal(world: World) -> None:
    row = world.row(world.put(bad(tenant_id="\x1b[2J")))
    assert "\x1b" not in rows.line(row)
    assert "\x1b" not in rows.in_full(row)


def test_a_cut_row_says_so(world: World) -> None:
    row = world.row(world.put(b"x" * 300_000))
    assert "262144 of 300000 bytes were kept" in rows.in_full(row)
    assert row.said("tenant_id") is None


@pytest.mark.parametrize(
    ("raw", "said"),
    [(b"{}", None), (b"[]", None), (b'{"tenant_id": 1}', None), (b"\xff", None), (b'{"tenant_id": " "}', " ")],
)
def test_what_an_event_says_of_itself_is_text_or_nothing(world: World, raw: bytes, said: str | None) -> None:
    row: RejectedRow = replace(world.row(world.put(bad())), raw=raw)
    assert row.said("tenant_id") == said


@pytest.mark.parametrize(
    ("text", "ago"),
    [("90m", timedelta(minutes=90)), ("12h", timedelta(hours=12)), ("7d", timedelta(days=7)), ("0m", timedelta(0))],
)
def test_a_start_may_be_so_long_ago(text: str, ago: timedelta) -> None:
    assert rows.since(text, now=NOW) == NOW - ago


def test_a_start_may_be_a_time_and_nothing_else() -> None:
    assert rows.since("2024-01-15T11:30:00+01:00", now=NOW) == NOW
    for text in ("yesterday", "7", "d", "-1d", "999999d", "2024-01-15"):
        with pytest.raises(InvalidEventError, match="--since"):
            rows.since(text, now=NOW)


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay"],
        ["replay", "a/1/0", "--reason", "negative_value"],
        ["replay", "a/1/0", "--tenant", "t"],
        ["replay", "a/1/0", "--set", "value"],
        ["replay", "a/1/0", "--set", "=1"],
        ["replay", "a/1/0", "b/1/0", "--event", "-"],
        ["replay", "--reason", "negative_value", "--event", "-"],
        ["list", "--limit", "0"],
        ["show"],
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_read(arguments: list[str]) -> None:
    assert CliRunner().invoke(command_group, ["rejected", *arguments]).exit_code == 2


@pytest.mark.parametrize("arguments", [["show", "x"], ["replay", "a/1/0", "x"], ["list", "--since", "x"]])
def test_what_can_not_be_read_is_one_line(arguments: list[str]) -> None:
    done = CliRunner().invoke(command_group, ["rejected", *arguments])
    assert done.exit_code == 1
    assert done.output.startswith("metering: invalid_")
    assert done.output.count("\n") == 1
