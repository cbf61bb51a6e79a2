"""The export of a period: its rows are the usage of each tenant and metric, and its last line proves it whole."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.app import create_app
from billing.checksum import LINE_BYTES_MAX, NotWholeError, whole_rows
from billing.export import DIRECTORY_PAGE, EXPORTS_MAX, TENANTS_AHEAD_MAX
from metering.errors import StoreUnavailableError
from metering.events import decimal_text, time_text
from metering.memory import MemoryTables
from metering.meters_file import METERS_FILE
from metering.ports import TenantPage, Total
from metering.settings import Settings
from metering.windows import WindowRow
from tests.builders import NOW, count, event, shard
from tests.unit.openapi_support import KEY, Document, bearer, key_file

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from metering.events import Event

EXPORT = "/v1/export"
JANUARY = f"{EXPORT}?period=2024-01"
CSV = f"{JANUARY}&format=csv"


def entered(tables: MemoryTables, *events: Event, **named: Any) -> None:
    for one in events:
        tables.register_tenant(one.tenant_id, now=NOW)
    count(tables, *events, **named)


def client_of(tables: MemoryTables, **environment: str) -> FlaskClient:
    return create_app(tables, Settings.from_environment(environment), now=lambda: NOW).test_client()


def small() -> MemoryTables:
    """Two tenants; one metric is used outside of January alone."""
    tables = MemoryTables()
    entered(
        tables,
        event(tenant_id="b", metric="sms", value="0.1", timestamp="2024-01-01T00:00:00Z"),
        event(tenant_id="a", metric="z", value="999999999999999.999999999", timestamp="2024-01-15T10:00:00Z"),
        event(tenant_id="a", metric="api_calls", value="7", timestamp="2023-12-31T23:59:59.999Z"),
        event(tenant_id="b", metric="sms", value="0.2", timestamp="2024-01-15T10:00:00Z"),
    )
    tables.open_shard(shard(), complete_until=NOW - timedelta(seconds=2), now=NOW)
    return tables


def lines(answer: TestResponse) -> list[list[str]]:
    """The lines of a whole CSV but the checksum."""
    assert answer.status_code == 200, answer.text
    assert whole_rows(io.BytesIO(answer.data)) == answer.text.count("\r\n") - 2
    return list(csv.reader(io.StringIO(answer.text, newline="")))[:-1]


def objects(answer: TestResponse) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    whole_rows(io.BytesIO(answer.data))
    return [json.loads(line, parse_float=Decimal) for line in answer.text.splitlines()][:-1]


def test_each_metric_of_each_tenant_is_a_row_in_order_and_zeros_are_rows_too() -> None:
    answer = client_of(small()).get(CSV)
    assert answer.content_type == "text/csv; charset=utf-8; header=present"
    assert lines(answer) == [
        ["tenant_id", "metric", "usage", "events"],
        ["a", "api_calls", "0", "0"],
        ["a", "z", "999999999999999.999999999", "1"],
        ["b", "sms", "0.3", "2"],
    ]
    answer = client_of(small()).get(JANUARY)
    assert answer.content_type == "application/x-ndjson"
    assert objects(answer) == [
        {"tenant_id": "a", "metric": "api_calls", "usage": 0, "events": 0},
        {"tenant_id": "a", "metric": "z", "usage": Decimal("999999999999999.999999999"), "events": 1},
        {"tenant_id": "b", "metric": "sms", "usage": Decimal("0.3"), "events": 2},
    ]


def test_the_last_line_is_what_coreutils_make_of_the_lines_before_it(tmp_path: Path) -> None:
    for query, before, after in (("csv", "#sha256=", ",rows=3\r\n"), ("json", '{"sha256":"', '","rows":3}\n')):
        file = tmp_path / query
        file.write_bytes(client_of(small()).get(f"{JANUARY}&format={query}").data)
        before_it = subprocess.run(["head", "-n", "-1", file], capture_output=True, check=True).stdout
        made = subprocess.run(["sha256sum"], input=before_it, capture_output=True, check=True).stdout
        digits = made.decode().split()[0]
        assert file.read_bytes().decode().splitlines(keepends=True)[-1] == f"{before}{digits}{after}"


def test_what_is_said_once_is_a_header() -> None:
    headers = client_of(small()).get(f"{CSV}&timezone=Europe/Berlin").headers
    said = {name: headers[name] for name in ("As-Of", "Lag-Ms", "Period-From", "Period-To", "Cache-Control")}
    assert said == {
        "As-Of": "2024-01-15T10:29:58.000Z",
        "Lag-Ms": "2000",
        "Period-From": "2024-01-01T00:00:00+01:00",
        "Period-To": "2024-02-01T00:00:00+01:00",
        "Cache-Control": "no-store",
    }
    assert {"As-Of", "Lag-Ms"} & set(client_of(MemoryTables()).get(CSV).headers.keys()) == set()


@pytest.mark.parametrize(
    ("asked", "usage"),
    [
        ("period=2024-01", "0.3"),
        ("period=2023-12", "0"),
        ("period=2024-01&timezone=America/New_York", "0.2"),
        ("from=2024-01-01T00:00:00Z&to=2024-01-15T10:00:00Z", "0.1"),
        ("from=2024-01-15T10:00:00Z&to=2024-01-15T11:00:00Z", "0.2"),
        ("from=2024-01-15&to=2024-02", "0.2"),
        ("from=2024-01-15&to=2024-01-15", "0"),
        ("from=0001-01-01&to=9999-12-31", "0.3"),
        ("period=9998-12", "0"),
    ],
)
def test_a_range_is_half_open_by_event_time(asked: str, usage: str) -> None:
    assert lines(client_of(small()).get(f"{EXPORT}?{asked}&format=csv"))[-1][:3] == ["b", "sms", usage]


@pytest.mark.parametrize(
    ("asked", "code", "parameter"),
    [
        ("", "invalid_range", "period"),
        ("period=", "invalid_range", "period"),
        ("from=2024-01", "invalid_range", "to"),
        ("to=2024-01", "invalid_range", "from"),
        ("period=2024-01&from=2024-01", "invalid_range", "from"),
        ("period=2024-01&to=2024-02", "invalid_range", "to"),
        ("from=2024-02&to=2024-01", "invalid_range", "from"),
        ("period=2024-13", "invalid_period", "period"),
        ("period=2024-1", "invalid_period", "period"),
        ("period=9999-12", "invalid_period", "period"),
        ("from=x&to=2024-02", "invalid_time", "from"),
        ("from=2024-01-01T00:30:00Z&to=2024-02", "unaligned_time", "from"),
        ("period=2024-01&timezone=Asia/Kolkata", "timezone_needs_smaller_windows", "timezone"),
        ("from=2024-01&to=2024-02&timezone=Asia/Kolkata", "timezone_needs_smaller_windows", "timezone"),
        ("period=2024-01&timezone=Mars", "invalid_timezone", "timezone"),
        ("period=2024-01&format=html", "invalid_format", "format"),
        ("period=2024-01&min_as_of=now", "invalid_time", "min_as_of"),
        ("period=2024-01&limit=5", "unknown_parameter", "limit"),
        ("period=2024-01&period=2024-02", "repeated_parameter", "period"),
    ],
)
def test_a_period_that_is_none_is_refused_as_documented(asked: str, code: str, parameter: str) -> None:
    client = client_of(small())
    answer = client.get(f"{EXPORT}?{asked}")
    assert (answer.status_code, answer.get_json()["code"], answer.get_json()["parameter"]) == (400, code, parameter)
    Document.of(client.application).assert_documented(answer, EXPORT, "get")


@pytest.mark.parametrize(
    ("accept", "mimetype"),
    [(None, "application/x-ndjson"), ("*/*", "application/x-ndjson"), ("text/csv", "text/csv"), ("text/*", "text/csv")],
)
def test_accept_decides_and_json_goes_first(accept: str | None, mimetype: str) -> None:
    client = client_of(small())
    answer = client.get(JANUARY, headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.mimetype, answer.headers["Vary"]) == (200, mimetype, "Accept")
    Document.of(client.application).assert_documented(client.get(CSV), EXPORT, "get")
    refused = client.get(JANUARY, headers={"Accept": "text/html"})
    assert (refused.status_code, refused.get_json()["code"]) == (406, "not_acceptable")
    Document.of(client.application).assert_documented(refused, EXPORT, "get")


METERS = "meters: {seats: {unit: seat, aggregation: max}, jobs: {aggregation: count}}\n"


def test_usage_is_by_the_meter_and_what_no_meter_knows_is_left_out(tmp_path: Path) -> None:
    tables, meters = MemoryTables(), METERS_FILE.parse(METERS.encode(), name="f")
    (file := tmp_path / "meters.yaml").write_text(METERS)
    used = [event(tenant_id="new", metric=metric, value=value) for metric in ("seats", "jobs") for value in "52"]
    entered(tables, *used, meters=meters)
    entered(tables, event(tenant_id="old", metric="seats", value="3"), event(tenant_id="old", metric="sms", value="3"))
    client = client_of(tables, METERS_FILE=str(file))
    assert lines(client.get(CSV)) == [
        ["tenant_id", "metric", "usage", "events", "unit", "aggregation"],
        ["new", "jobs", "2", "2", "", "count"],
        ["new", "seats", "5", "2", "seat", "max"],
        ["old", "seats", "", "1", "seat", "max"],
        ["old", "sms", "3", "1", "", "sum"],
    ]
    old = {"tenant_id": "old", "metric": "seats", "usage": None, "unit": "seat", "aggregation": "max", "events": 1}
    assert objects(client.get(JANUARY))[2] == old
    Document.of(client.application).schema("ExportRow").validate(old)


def test_a_row_that_the_border_cuts_is_known_on_neither_side() -> None:
    tables = MemoryTables()
    tables.window_minutes = 30
    entered(tables, event(tenant_id="a", timestamp="2023-12-31T18:20:00Z"))  # a row of an hour, from before
    entered(tables, event(tenant_id="b", timestamp="2023-12-31T18:40:00Z"), window_minutes=30)
    client = client_of(tables, USAGE_WINDOW_MINUTES="30")
    assert lines(client.get(f"{CSV}&timezone=Asia/Kolkata"))[1:] == [
        ["a", "api_calls", "", ""],
        ["b", "api_calls", "10", "1"],
    ]


def test_a_key_for_some_tenants_exports_those(tmp_path: Path) -> None:
    keys = key_file(tmp_path, (KEY, "b", "read"), (KEY, "nobody", "read"))
    client = client_of(small(), API_KEYS_FILE=keys)
    assert client.get(CSV).status_code == 401
    assert lines(client.get(CSV, headers=bearer(KEY)))[1:] == [["b", "sms", "0.3", "2"]]


def test_the_tenants_of_a_key_come_in_the_order_of_the_directory(tmp_path: Path) -> None:
    tenants = [*(f"t{number}" for number in range(10)), "テナント", "ﬀ", "𐐀"]  # UTF-16 has the last two turned round
    tables = MemoryTables()
    entered(tables, *(event(tenant_id=tenant) for tenant in tenants))
    keys = key_file(tmp_path, *((KEY, tenant, "read") for tenant in tenants))
    own = client_of(tables, API_KEYS_FILE=keys).get(CSV, headers=bearer(KEY))
    assert [row[0] for row in lines(own)[1:]] == tenants
    assert own.data == client_of(tables).get(CSV).data


class Slow(MemoryTables):
    """Tenants enough for several pages of the directory; `fails` says which of them can't be read."""

    tenants_in_all = 0
    fails: str | None = None
    behind_ahead_max = 0

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.begun = 0

    def tenants(self, *, limit: int, after: str | None) -> TenantPage:
        first = 0 if after is None else int(after) + 1
        last = min(self.tenants_in_all, first + limit) - 1
        return TenantPage(
            tuple(f"{number:06d}" for number in range(first, last + 1)),
            None if last + 1 >= self.tenants_in_all else f"{last:06d}",
        )

    def totals(self, tenant_id: str) -> list[Total]:
        with self._lock:
            self.begun += 1
        if tenant_id == self.fails:
            raise StoreUnavailableError("away")
        return [Total(tenant_id, "api_calls", Decimal(1), 1, NOW)]

    def windows(self, tenant_id: str, metric: str, *, start: datetime, end: datetime) -> Iterator[WindowRow]:
        yield WindowRow(datetime(2024, 1, 2, tzinfo=UTC), 60, Decimal(int(tenant_id)), 1)


def slow(tenants: int, fails: str | None = None) -> Slow:
    tables = Slow()
    tables.tenants_in_all, tables.fails = tenants, fails
    return tables


def test_all_pages_of_the_directory_are_in() -> None:
    tenants = 2 * DIRECTORY_PAGE + 1
    found = lines(client_of(slow(tenants)).get(CSV))[1:]
    assert found == [[f"{number:06d}", "api_calls", str(number), "1"] for number in range(tenants)]


def test_memory_does_not_grow_with_the_number_of_tenants() -> None:
    def peak(tenants: int) -> int:
        client = client_of(slow(tenants))
        tracemalloc.start()
        for _ in client.get(CSV).response:
            pass
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    peak(10)
    few, many = peak(DIRECTORY_PAGE), peak(10 * DIRECTORY_PAGE)
    assert many < 1.5 * few, (few, many)  # all rows would be ten times as much, and are some 3 MB as objects


def test_little_is_read_before_the_client_takes_it() -> None:
    tables = slow(10_000)
    answer = client_of(tables).get(CSV)
    pieces = iter(answer.response)
    sent = len(next(pieces).splitlines()) - 1
    assert tables.begun <= sent + TENANTS_AHEAD_MAX
    next(pieces)
    answer.close()
    begun = tables.begun
    assert begun < 5_000
    assert client_of(tables).get("/healthz").status_code == 200
    assert tables.begun <= begun + TENANTS_AHEAD_MAX


def test_what_is_read_slowly_goes_out_a_second_after_the_last_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = itertools.count(0.0, 0.25)  # a quarter of a second for each tenant
    monkeypatch.setattr("billing.export.time", SimpleNamespace(monotonic=lambda: next(clock_s)))
    pieces = [piece.decode().splitlines() for piece in client_of(slow(10)).get(CSV).response]
    assert [len(piece) for piece in pieces] == [1 + 4, 4, 2 + 1]


def test_a_reading_that_fails_at_once_is_a_problem_and_later_breaks_off_without_the_last_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = client_of(slow(100, fails="000050")).get(CSV)
    assert (answer.status_code, answer.get_json()["code"]) == (503, "unavailable")
    pieces = iter(client_of(slow(10_000, fails="008000")).get(CSV).response)
    taken: list[bytes] = []
    with pytest.raises(ConnectionResetError):
        taken.extend(pieces)
    received = b"".join(taken)
    assert received.startswith(b"tenant_id,metric,usage,events\r\n000000,api_calls,0,1\r\n")
    with pytest.raises(NotWholeError):
        whole_rows(io.BytesIO(received))
    assert "an export broke off: away" in caplog.messages


def test_only_so_many_exports_at_once_and_each_that_ends_makes_room() -> None:
    tables = slow(10_000)
    client = client_of(tables)
    open_ones = [client.get(CSV) for _ in range(EXPORTS_MAX)]
    refused = client.get(CSV)
    assert (refused.status_code, refused.get_json()["code"]) == (503, "too_many_exports")
    assert refused.headers["Retry-After"]
    Document.of(client.application).assert_documented(refused, EXPORT, "get")
    open_ones[0].close()  # its client went away
    tables.fails = "000003"
    assert client.get(CSV).get_json()["code"] == "unavailable"
    tables.fails = None
    assert client.head(CSV).status_code == 200
    assert len(lines(client.get(CSV))) == 10_001
    assert client.get(f"{EXPORT}?period=x").status_code == 400
    assert client.get(CSV).status_code == 200


FROM = datetime(2023, 12, 30, tzinfo=UTC)
events = st.lists(
    st.builds(
        event,
        tenant_id=st.sampled_from(["a", "b", "テナント", "-1"]),
        metric=st.sampled_from(["m", "@A1", "z:z"]),
        value=st.decimals("0", "999999", places=9).map(str),
        timestamp=st.integers(0, 4 * 24 * 60).map(lambda minutes: time_text(FROM + timedelta(minutes=minutes))),
    ),
    max_size=30,
)


def test_each_row_is_the_usage_of_its_tenant_and_metric_in_the_range() -> None:
    tables = MemoryTables()
    client = client_of(tables)

    @given(events, st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]), st.integers(1, 4), st.integers(1, 4))
    def held(used: list[Event], zone: str, first: int, last: int) -> None:
        tables.__init__()  # type: ignore[misc]  # empty again; an app takes longer to make than to ask
        entered(tables, *used)
        days = f"from=2024-01-0{min(first, last)}&to=2024-01-0{max(first, last)}&timezone={zone}"
        found = objects(client.get(f"{EXPORT}?{days}"))
        keys = [(row["tenant_id"], row["metric"]) for row in found]
        counters = {(one.tenant_id, one.metric) for one in used}
        assert keys == sorted(counters, key=lambda key: tuple(map(str.encode, key)))
        for row in found:
            usage = client.get(f"/v1/tenants/{row['tenant_id']}/usage/{row['metric']}?{days}")
            said = json.loads(usage.text, parse_float=Decimal)
            assert (row["usage"], row["events"]) == (said["usage"], said["events"])
        cells = [
            [row["tenant_id"], row["metric"], decimal_text(Decimal(row["usage"])), str(row["events"])] for row in found
        ]
        assert lines(client.get(f"{EXPORT}?{days}&format=csv"))[1:] == cells

    held()


WHOLE = [client_of(small()).get(f"{JANUARY}&format={form}").data for form in ("csv", "json")]


@given(st.data())
def test_a_byte_that_is_changed_added_or_missing_is_found(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(WHOLE))
    assert whole_rows(io.BytesIO(whole)) == 3
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    added = bytes([data.draw(st.integers(0, 255))])
    for changed in (
        whole[:at] + bytes([other]) + whole[at + 1 :],
        whole[:at] + whole[at + 1 :],
        whole[:at],
        whole[:at] + added + whole[at:],
        whole + added,
        whole + whole,
    ):
        if changed != whole:
            with pytest.raises(NotWholeError):
                whole_rows(io.BytesIO(changed))


@pytest.mark.parametrize("whole", WHOLE)
def test_every_digit_that_is_put_into_the_count_of_rows_is_found(whole: bytes) -> None:
    at = whole.rindex(b"3")
    for changed in (whole[:at] + digit + whole[at:] for digit in (b"0", b"1", b" ", b"+")):
        with pytest.raises(NotWholeError, match="its last line"):
            whole_rows(io.BytesIO(changed))


def test_a_checksum_that_was_made_for_another_count_of_rows_is_found() -> None:
    row = b'{"a":1}\n'
    for rows in (0, 2):
        line = f'{{"sha256":"{sha256(row).hexdigest()}","rows":{rows}}}\n'.encode()
        with pytest.raises(NotWholeError, match=f"says {rows} rows, and there are 1"):
            whole_rows(io.BytesIO(row + line))


def test_a_checksum_within_a_line_is_none() -> None:
    long = b"x" * LINE_BYTES_MAX
    line = f'{{"sha256":"{sha256(long).hexdigest()}","rows":0}}\n'.encode()
    with pytest.raises(NotWholeError, match="its last line is no checksum"):
        whole_rows(io.BytesIO(long + line))


def test_what_is_no_export_and_has_no_line_ends_is_not_read_at_once() -> None:
    class Counted(io.BytesIO):
        longest = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            found = super().readline(size)
            self.longest = max(self.longest, len(found))
            return found

    file = Counted(b"x" * (3 * LINE_BYTES_MAX))
    with pytest.raises(NotWholeError, match="its last line is no checksum"):
        whole_rows(file)
    assert file.longest == LINE_BYTES_MAX
