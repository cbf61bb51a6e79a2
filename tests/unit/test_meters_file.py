"""METERS_FILE: what it means, and the place and the sentence of what can be wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metering.errors import InvalidSettingError
from metering.meters import NO_METERS, Aggregation, Meter
from metering.meters_file import METERS_FILE, meters_of
from metering.settings import Settings
from metering.yaml_files import InvalidFileError

WHOLE = """\
meters:
  api_calls: {unit: call, description: "Calls, whatever they answer", aggregation: sum}
  seats: {unit: seat, aggregation: max}
  jobs: {aggregation: count}
  storage_gb: {unit: GB, aggregation: latest}
  sms:
"""


def faults(text: str) -> list[str]:
    with pytest.raises(InvalidFileError) as caught:
        METERS_FILE.parse(text.encode(), name="f")
    return caught.value.lines


def test_a_file_says_how_each_metric_is_measured_in_its_order() -> None:
    found = METERS_FILE.parse(WHOLE.encode(), name="f")
    assert list(found.by_metric.values()) == [
        Meter("api_calls", Aggregation.SUM, "call", "Calls, whatever they answer"),
        Meter("seats", Aggregation.MAX, "seat"),
        Meter("jobs", Aggregation.COUNT),
        Meter("storage_gb", Aggregation.LATEST, "GB"),
        Meter("sms", Aggregation.SUM),
    ]


def test_a_metric_without_a_meter_is_summed() -> None:
    assert METERS_FILE.parse(WHOLE.encode(), name="f").for_metric("clicks") == Meter("clicks")
    assert NO_METERS.for_metric("clicks").aggregation is Aggregation.SUM


def test_a_metric_is_named_as_events_name_it_whatever_yaml_thinks_of_it() -> None:
    found = METERS_FILE.parse("meters: {no: {unit: x}, 1e3: {}, テナント: {}}".encode(), name="f")
    assert list(found.by_metric) == ["no", "1e3", "テナント"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("meters: {seats: {aggregation: most}}", "f:1:31: 'most' stands here; allowed: sum, count, max, latest"),
        ("meters:\n  a b: {}", "f:2:3: 'a b' stands here; metric must be 1 to 128 letters, digits and . _ - : @, "),
        ("meters: {seats: {agregation: max}}", "f:1:18: there is no member 'agregation' here; did you mean "),
        ("meters: {seats: {unit: ''}}", "f:1:24: '' stands here; allowed: 1 to 32 characters that can be printed on"),
        ('meters: {seats: {unit: "a\\0b"}}', r"f:1:24: 'a\x00b' stands here; allowed: "),
        ('meters: {seats: {unit: "\\x7f"}}', r"f:1:24: '\x7f' stands here; allowed: "),
        ('meters: {seats: {unit: "a\\u2028b"}}', "f:1:24: "),
        ("meters: {seats: {unit: ' a'}}", "f:1:24: "),
        (f"meters: {{seats: {{unit: {'x' * 33}}}}}", "f:1:24: "),
        ("meters: {seats: {unit: 5}}", "f:1:24: "),
        ("meters:\n  seats:\n    unit: |\n      seat\n", "f:3:11: 'seat\\n' stands here; allowed: 1 to 32 "),
        (f"meters: {{seats: {{description: {'x' * 501}}}}}", "f:1:31: "),
        ("meters: {seats: max}", "f:1:17: 'max' stands here; allowed: a meter as {unit: seat, aggregation: max}"),
        ("meters: {}", "f:1:9: "),
        ("seats: {aggregation: max}", "f:1:1: "),
        ("meters: {seats: {}, seats: {}}", "f:1:21: "),
        ("meters: {seats: {", "f:1:18: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(text: str, fault: str) -> None:
    assert faults(text)[0].startswith(fault)


def test_all_faults_are_found() -> None:
    assert len(faults("meters:\n  a b: {aggregation: max}\n  c d: {}\n")) == 2
    assert len(faults("meters:\n  a: {aggregation: most}\n  b: {unit: ''}\n")) == 2


def test_a_file_that_can_not_be_used_is_one_line_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "meters.yaml"
    with pytest.raises(InvalidSettingError, match=r"METERS_FILE='.*meters.yaml' can't be used: .*: No such file"):
        METERS_FILE.read(path)
    path.write_text("meters: {seats: {aggregation: most}}")
    with pytest.raises(InvalidSettingError, match=r"METERS_FILE=.*meters\.yaml:1:31: 'most' stands here") as caught:
        meters_of(replace(Settings.from_environment({}), meters_file=path))
    assert "\n" not in str(caught.value)


def test_no_file_is_no_meters() -> None:
    assert meters_of(Settings.from_environment({})) is NO_METERS


def test_strict_needs_the_file_that_says_what_there_is() -> None:
    with pytest.raises(InvalidSettingError, match=r"METERS_STRICT='on' can't be used: allowed: only with METERS_FILE"):
        Settings.from_environment({"METERS_STRICT": "on"})
