"""The short form of `python -m tests.fuzz`, and what makes it worth running: it finds what is broken on purpose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

import pytest

from collector import bodies
from collector.openapi import RULE_CODES
from metering import envelopes, events, outgoing
from tests.fuzz.bodies import sent
from tests.fuzz.run import run

SEED = 1
PARSERS = (
    "array_of_events",
    "cloud_event",
    "cloud_events",
    "decode_record",
    "from_binary",
    "lines_of_events",
    "one_event",
)


def _as_a_client(raw: object, *, arrived_at: datetime, age_days_max: int | None) -> events.Event:
    return events.parse_event(raw, now=arrived_at, age_days_max=age_days_max)


class Cut(bodies.Line):
    pass


def test_no_body_breaks_a_law() -> None:
    report = run(SEED, 20_000)
    assert not report.failures, "\n".join(report.lines())
    assert report.bodies == 20_000
    # Bodies that are all refused at their first byte would test nothing.
    assert all(report.tally[parser, "accepted"] > 50 for parser in PARSERS), "\n".join(report.lines())
    found = {code for _, code in report.tally}
    assert found >= RULE_CODES - {"unknown_metric"} | {"malformed_json", "malformed_record", "too_large"}


def test_a_body_is_made_again_by_its_seed_and_number() -> None:
    assert [sent(SEED, number) for number in range(300)] == [sent(SEED, number) for number in range(300)]
    assert (
        len({sent(SEED, number).body for number in range(300)} | {sent(2, number).body for number in range(300)}) > 500
    )
    assert run(SEED, 600).tally == run(SEED, 400).tally + run(SEED, 200, first=400).tally


@dataclass(frozen=True)
class Break:
    """What is put in place of a name, the words of the failure that must follow, and within how many bodies."""

    module: object
    name: str
    broken: object
    words: str
    bodies: int = 2_000


BREAKS = {
    "the decoder recurses without a limit": Break(events, "NESTING_MAX", 10**9, "RecursionError", 8_000),
    "the quick way lets a key stand twice": Break(outgoing, "_each_key_once", lambda *_: True, "the quick way gives"),
    "no exponent is refused": Break(events, "_refuse_range", lambda: None, "InvalidOperation"),
    "the consumer knows fewer fields": Break(envelopes, "parse_stream_event", _as_a_client, "the consumer refuses"),
    "what is too long is cut": Break(bodies, "Line", lambda text: Cut(text[:50]), "body_lines"),
    "a key may stand twice": Break(events, "_DECODER", json.JSONDecoder(parse_int=str, parse_float=str), "twice"),
    "what is refused is not kept as it was": Break(envelopes, "_raw_json", lambda _: b"{}", "kept is"),
    "a value is rounded": Break(events, "decimal_text", lambda value: f"{value:.0f}", "the quick way gives"),
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
def test_what_is_broken_on_purpose_is_found(monkeypatch: pytest.MonkeyPatch, broken: Break) -> None:
    monkeypatch.setattr(broken.module, broken.name, broken.broken)
    report = run(SEED, broken.bodies)
    assert any(broken.words in failure.words for failure in report.failures), "\n".join(report.lines())
    assert f"{len(report.failures)} broke a law" in report.lines()[-1]
    assert any(line.endswith(report.failures[0].body.hex()) for line in report.lines())
