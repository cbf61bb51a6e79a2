"""Reading files of events: each record is read as it stands, and a bad one costs no other."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import InvalidEventError, SetupError
from operations import send_files
from operations.send import derived_id
from operations.send_files import LINE_BYTES_MAX, CsvFile, NdjsonFile, format_of, open_records, with_event_id
from operations.send_progress import Delivery, Progress

HEADER = b"tenant_id,metric,value,timestamp,event_id\n"


def read(content: bytes, format_name: str) -> list[tuple[int, str]]:
    """Each record's line, and its event or the code of what is wrong with it."""
    file = open_records(io.BytesIO(content), format_name)
    found = []
    for record in file.records():
        try:
            found.append((record.line, file.event(record).encoded.decode()))
        except InvalidEventError as error:
            found.append((record.line, error.code))
    return found


# ── NDJSON ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_are_events_byte_for_byte_and_blank_ones_are_none() -> None:
    content = b'\xef\xbb\xbf{"value":1e2}\n\n  {"value": 0.10 }\r\n \t\n{"a":1}'
    assert read(content, "ndjson") == [(1, '{"value":1e2}'), (3, '{"value": 0.10 }'), (5, '{"a":1}')]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "malformed_json"),
        (b'{"a":1}{"a":2}', "malformed_json"),
        (b'{"a":1},{"a":2}', "malformed_json"),
        (b'{"a":1,"a":2}', "malformed_json"),
        (b'{"a":NaN}', "malformed_json"),
        (b'{"a":"\xff"}', "malformed_json"),
        (b"[1]", "invalid_event"),
        (b'"text"', "invalid_event"),
        (b'{"a":' + b"[" * 31 + b"]" * 31 + b"}", "malformed_json"),
        (b'{"a":"' + b"x" * LINE_BYTES_MAX + b'"}', "too_large"),
        (b'{"a":"' + b"x" * 3 * LINE_BYTES_MAX + b'"}', "too_large"),
    ],
)
def test_line_that_is_no_event_costs_no_other(line: bytes, code: str) -> None:
    good = '{"a":1}'
    assert read(b'{"a":1}\n' + line + b'\n{"a":1}\n', "ndjson") == [(1, good), (2, code), (3, good)]


def test_line_that_is_just_not_too_deep_is_left_to_the_collector() -> None:
    line = b'{"a":' + b"[" * 30 + b"]" * 30 + b"}"
    assert read(line, "ndjson") == [(1, line.decode())]


def test_reason_names_the_column_of_the_line() -> None:
    file = NdjsonFile(io.BytesIO(b'{"a": }\n'))
    (record,) = file.records()
    with pytest.raises(InvalidEventError, match=r"this is not JSON: Expecting value \(column 7\)"):
        file.event(record)


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    st.sampled_from(["", " ", "\t \r"]),
)
def test_added_id_changes_nothing_else(event: dict[str, object], space: str) -> None:
    event.pop("event_id", None)
    encoded = json.dumps(event).replace("{", "{" + space, 1).encode()
    assert json.loads(with_event_id(encoded, 'file:"é":1')) == {"event_id": 'file:"é":1', **event}


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_events_with_text_for_values_and_nothing_for_empty_optional_cells() -> None:
    content = HEADER + b"a,m,0.10,2024-01-15T10:00:00Z,id-1\r\nb,m,5,,\n\n" + b'"c","m","7","",""'
    assert read(content, "csv") == [
        (2, '{"event_id":"id-1","metric":"m","tenant_id":"a","timestamp":"2024-01-15T10:00:00Z","value":"0.10"}'),
        (3, '{"metric":"m","tenant_id":"b","value":"5"}'),
        (5, '{"metric":"m","tenant_id":"c","value":"7"}'),
    ]


def test_byte_order_mark_of_spreadsheets_is_no_part_of_the_first_column() -> None:
    assert read(b"\xef\xbb\xbf" + HEADER + b"a,m,1,,\n", "csv") == [(2, '{"metric":"m","tenant_id":"a","value":"1"}')]


def test_order_of_the_columns_changes_no_event() -> None:
    assert read(b"value,tenant_id,metric\n1,a,m\n", "csv") == read(b"metric,value,tenant_id\nm,1,a\n", "csv")


def test_line_ends_within_quotes_belong_to_the_row_and_it_is_named_by_its_first_line() -> None:
    content = b'tenant_id,metric,value\n"a\n\n""b""",m,1\nc,m,2\n'
    assert read(content, "csv") == [
        (2, '{"metric":"m","tenant_id":"a\\n\\n\\"b\\"","value":"1"}'),
        (5, '{"metric":"m","tenant_id":"c","value":"2"}'),
    ]


@pytest.mark.parametrize(
    "row",
    [
        b"a,m",
        b"a,m,1,2,3,4",
        b"a,m\r,1,,",
        b'"a"b,m,1,,',
        b'"never closed,m,1,,',
        b'a,m,1,,"never closed',
        b"a,m,\xff,,",
        b"a,m,1,," + b"x" * LINE_BYTES_MAX,
    ],
)
def test_row_that_is_no_csv_costs_no_other(row: bytes) -> None:
    content = HEADER + b"a,m,1,,\n" + row + b"\n" + b"b,m,2,,\n" * 2000
    good = '{"metric":"m","tenant_id":"b","value":"2"}'
    assert read(content, "csv") == [
        (2, '{"metric":"m","tenant_id":"a","value":"1"}'),
        (3, "malformed_csv"),
        *((line, good) for line in range(4, 2004)),
    ]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "begins with a row"),
        (b"\n\n", "begins with a row"),
        (b'"tenant_id\n', "begins with a row"),
        (b"tenant_id,metric,value,timestmap\n", "no column 'timestmap'"),
        (b"tenant_id;metric;value\n", "no column 'tenant_id;metric;value'"),
        (b"tenant_id,metric\n", "the column value is missing"),
        (b"tenant_id,metric,value,value\n", "twice"),
        (b'{"tenant_id":"a"}\n', "no column"),
    ],
)
def test_header_that_can_not_be_used_is_refused_by_name(header: bytes, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        CsvFile(io.BytesIO(header))


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)] * 3),
        max_size=5,
    ),
    st.sampled_from(["\n", "\r\n"]),
)
def test_whatever_a_csv_writer_writes_is_read_back(rows: list[tuple[str, str, str]], end: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("tenant_id", "metric", "value"), *rows])
    found = read(text.getvalue().encode(), "csv")
    assert [json.loads(event) for _, event in found] == [
        dict(zip(("tenant_id", "metric", "value"), row, strict=True)) for row in rows
    ]


# ── Both ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "format_name"), [("a.ndjson", "ndjson"), ("a.b/c.JSONL", "ndjson"), ("usage.CSV", "csv")]
)
def test_suffix_tells_the_format(name: str, format_name: str) -> None:
    assert format_of(name) == format_name


@pytest.mark.parametrize("name", ["usage", "usage.txt", "csv", "usage.json"])
def test_suffix_that_tells_nothing_is_asked_about(name: str) -> None:
    with pytest.raises(SetupError, match="--format"):
        format_of(name)


class _Endless(io.RawIOBase):
    """So many bytes of `piece`, made while they are read."""

    def __init__(self, begin: bytes, piece: bytes, size: int) -> None:
        self._rest, self._piece, self._left = begin, piece, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while len(self._rest) < len(buffer) and self._left > 0:
            self._rest += self._piece
            self._left -= len(self._piece)
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


@pytest.mark.parametrize(
    ("begin", "piece", "format_name"),
    [
        (b"", b'{"tenant_id":"a","metric":"m","value":1}\n' * 100, "ndjson"),
        (b"", b"x" * 8192, "ndjson"),
        (HEADER, b"a,m,1,,\n" * 100, "csv"),
        (HEADER, b"x" * 8192, "csv"),
        (HEADER + b'"', b'""\n' * 4096, "csv"),
    ],
    ids=["ndjson", "one line", "csv", "one row", "one quote"],
)
def test_memory_does_not_grow_with_the_file(
    begin: bytes, piece: bytes, format_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_files, "LINE_BYTES_MAX", 32_768)

    def peak(size: int) -> int:
        tracemalloc.start()
        file = open_records(io.BufferedReader(_Endless(begin, piece, size)), format_name)
        for record in file.records():
            assert record.line
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert file.bytes_read >= size
        return found

    assert peak(300_000) < peak(100_000) * 1.5


# ── Ids and progress ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_derived_ids_differ_by_source_line_and_content_and_stay_as_they_are() -> None:
    first = derived_id("/a.csv", 2, b"{}")
    others = [derived_id("/b.csv", 2, b"{}"), derived_id("/a.csv", 3, b"{}"), derived_id("/a.csv", 2, b'{"a":1}')]
    assert len({first, *others}) == 4
    # What an earlier version has sent must not count again under another id.
    assert first == "file:9046c29e8cb42a800672102f0b3d9302:2"


@given(st.data(), st.integers(1, 30), st.sampled_from([1, 3, 7]))
def test_progress_knows_of_each_line_whether_it_is_accepted(data: st.DataObject, count: int, size: int) -> None:
    content = b"".join(b'{"a":%d}\n' % number for number in range(count))
    records = list(NdjsonFile(io.BytesIO(content)).records())
    progress = Progress(Delivery("http://x", "s", "ndjson"))
    accepted: set[int] = set()
    for _ in range(data.draw(st.integers(1, 3), "runs")):
        waiting = [record for record in records if not progress.has_accepted(record.line)]
        for start in range(0, len(waiting), size)[: data.draw(st.integers(0, 12), "batches of this run")]:
            batch = waiting[start : start + size]
            taken = [record for record in batch if data.draw(st.booleans(), f"line {record.line} is accepted")]
            progress = progress.noting(taken, [record for record in batch if record not in taken])
            accepted |= {record.line for record in taken}
        assert {record.line for record in records if progress.has_accepted(record.line)} == accepted
        assert progress.is_of(records)
        for record in records:
            changed = list(NdjsonFile(io.BytesIO(content.replace(record.raw, b'{"b":0}\n'))).records())
            assert progress.is_of(changed) == (record.line not in accepted)


def test_last_line_without_its_end_is_not_noted_since_it_may_grow() -> None:
    first, last = NdjsonFile(io.BytesIO(b'{"a":1}\n{"a":2}')).records()
    progress = Progress(Delivery("http://x", "s", "ndjson")).noting([first, last], [])
    assert (progress.has_accepted(1), progress.has_accepted(2)) == (True, False)
    assert progress.is_of(NdjsonFile(io.BytesIO(b'{"a":1}\n{"a":2,"b":3}\n')).records())
