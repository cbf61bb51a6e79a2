"""Batches against a collector that fails: what it reports as accepted is held; only what is not final goes again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import stamina
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.errors import SetupError
from metering.events import encode_json
from metering.sending import Accepted, BatchSender, KeyedEvent, Outcome, Rejected, Unsent
from tests.unit.collector_twin import FAULTS, HELD_THEN, CollectorTwin, collector_twin

QUICK_S = 0.3
FAR_FUTURE = 3600


@pytest.fixture
def twin() -> Iterator[CollectorTwin]:
    with collector_twin() as running:
        yield running


@pytest.fixture
def unhurried() -> Iterator[None]:
    """Retries without waits, as many as a test may need."""
    with stamina.set_testing(True, attempts=1000):
        yield


def keyed(number: int, **fields: str) -> KeyedEvent:
    event_id = f"id-{number}"
    event = {"tenant_id": "tenant-123", "metric": "api_calls", "value": "1", "event_id": event_id, **fields}
    return KeyedEvent(event_id, encode_json(event))


def ids(post_events: list[dict[str, str]]) -> list[str]:
    return [event["event_id"] for event in post_events]


def kinds(outcomes: list[Outcome]) -> list[type[Outcome]]:
    return [type(outcome) for outcome in outcomes]


def test_each_event_has_the_outcome_that_the_collector_gave_it(twin: CollectorTwin) -> None:
    outcomes = BatchSender(twin.url).send([keyed(0), keyed(1, value="-1"), keyed(2), keyed(3, metric="a b")])
    assert [outcome.code if isinstance(outcome, Rejected) else outcome for outcome in outcomes] == [
        Accepted(repeated=False),
        "negative_value",
        Accepted(repeated=False),
        "invalid_metric",
    ]
    assert set(twin.held) == {"id-0", "id-2"}
    assert len(twin.posts) == 1


@pytest.mark.usefixtures("unhurried")
def test_only_what_is_not_final_is_posted_again(twin: CollectorTwin) -> None:
    twin.script = ["some", "some"]
    outcomes = BatchSender(twin.url).send([keyed(0), keyed(1), keyed(2, value="-1"), keyed(3)])
    assert [ids(post.events) for post in twin.posts] == [
        ["id-0", "id-1", "id-2", "id-3"],
        ["id-1", "id-3"],
        ["id-3"],
    ]
    assert kinds(outcomes) == [Accepted, Accepted, Rejected, Accepted]
    assert [outcome.repeated for outcome in outcomes if isinstance(outcome, Accepted)] == [False, True, True]


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("fault", [*FAULTS, "408", "502", "504"])
def test_any_fault_that_passes_costs_nothing_and_changes_no_id(twin: CollectorTwin, fault: str) -> None:
    twin.script = [fault]
    outcomes = BatchSender(twin.url, answer_wait_s=QUICK_S).send([keyed(0), keyed(1)])
    assert kinds(outcomes) == [Accepted, Accepted]
    assert set(twin.held) == {"id-0", "id-1"}
    assert len(twin.posts) == 2
    if fault in HELD_THEN:
        assert len(twin.held["id-1"]) == 2
    assert [len(twin.contents(event_id)) for event_id in twin.held] == [1, 1]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(
        st.sampled_from([*[fault for fault in FAULTS if fault != "hang"], "page", "401", None]), max_size=6
    ),
    values=st.lists(st.sampled_from(["1", "0.5", "-1", "x"]), min_size=1, max_size=9),
    attempts=st.integers(1, 8),
    body_bytes_max=st.sampled_from([10, 250, 10_000]),
)
def test_whatever_happens_accepted_events_are_held_and_every_event_has_an_outcome(
    twin: CollectorTwin, script: list[str | None], values: list[str], attempts: int, body_bytes_max: int
) -> None:
    twin.script, twin.held, twin.body_bytes_max = list(script), {}, body_bytes_max
    with stamina.set_testing(True, attempts=attempts):
        outcomes = BatchSender(twin.url).send([keyed(number, value=value) for number, value in enumerate(values)])
    assert len(outcomes) == len(values)
    for number, (value, outcome) in enumerate(zip(values, outcomes, strict=True)):
        if isinstance(outcome, Accepted):
            assert len(twin.contents(f"id-{number}")) == 1
        if isinstance(outcome, Rejected):
            assert outcome.code == "too_large" or value in {"-1", "x"}
    if not script and body_bytes_max == 10_000:
        assert Unsent not in kinds(outcomes)


def test_collector_that_stays_away_ends_in_unsent_events_after_the_bound(twin: CollectorTwin) -> None:
    twin.script = ["503"] * 1000
    twin.retry_after = "0"
    outcomes = BatchSender(twin.url, retry_s=QUICK_S).send([keyed(0), keyed(1)])
    assert kinds(outcomes) == [Unsent, Unsent]
    assert "503 told_to" in str(outcomes[0])
    # Retry-After: 0 is no leave to post as fast as it goes.
    assert len(twin.posts) < 10


def test_connection_that_nobody_takes_ends_in_unsent_events() -> None:
    with collector_twin() as gone:
        url = gone.url
    outcomes = BatchSender(url, retry_s=QUICK_S).send([keyed(0)])
    assert kinds(outcomes) == [Unsent]
    assert "no answer from" in str(outcomes[0])


def test_retry_after_is_waited_for(twin: CollectorTwin) -> None:
    twin.script, twin.retry_after = ["429"], "2"
    began = time.monotonic()
    assert kinds(BatchSender(twin.url).send([keyed(0)])) == [Accepted]
    assert time.monotonic() - began >= 2


@pytest.mark.parametrize(
    "retry_after",
    [str(FAR_FUTURE), "9" * 400, format_datetime(datetime.now(UTC) + timedelta(seconds=FAR_FUTURE))],
    ids=["seconds", "seconds for ever", "date"],
)
def test_collector_that_wants_to_be_left_alone_for_longer_than_the_bound_is_given_up(
    twin: CollectorTwin, retry_after: str
) -> None:
    twin.script, twin.retry_after = ["503"], retry_after
    assert kinds(BatchSender(twin.url, retry_s=30).send([keyed(0)])) == [Unsent]
    assert len(twin.posts) == 1


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("retry_after", ["soon", "-1", "1.5", "Mon, 99 Jan 2024 00:00:00 GMT", ""])
def test_retry_after_that_says_nothing_is_taken_for_none(twin: CollectorTwin, retry_after: str) -> None:
    twin.script, twin.retry_after = ["503"], retry_after
    assert kinds(BatchSender(twin.url).send([keyed(0)])) == [Accepted]


@pytest.mark.parametrize("status", ["200", "401", "403", "404", "405", "415", "301", "307"])
def test_refusal_of_the_whole_is_not_tried_again(twin: CollectorTwin, status: str) -> None:
    twin.script = [status]
    outcomes = BatchSender(twin.url).send([keyed(0), keyed(1)])
    assert kinds(outcomes) == [Unsent, Unsent]
    assert f"answers {status}" in str(outcomes[0])
    assert len(twin.posts) == 1


def test_page_of_something_else_is_no_collector(twin: CollectorTwin) -> None:
    twin.script = ["page"]
    assert kinds(BatchSender(twin.url).send([keyed(0)])) == [Unsent]
    assert len(twin.posts) == 1


@pytest.mark.usefixtures("unhurried")
def test_refusal_after_a_part_was_taken_leaves_that_part_accepted(twin: CollectorTwin) -> None:
    twin.script = ["some", "401"]
    assert kinds(BatchSender(twin.url).send([keyed(0), keyed(1)])) == [Accepted, Unsent]


def test_body_that_is_too_large_for_the_way_is_halved_until_it_passes(twin: CollectorTwin) -> None:
    twin.body_bytes_max = 300
    events = [keyed(number) for number in range(9)]
    events[4] = keyed(4, metric="m" * 400)
    outcomes = BatchSender(twin.url).send(events)
    assert [outcome for outcome in outcomes if isinstance(outcome, Rejected)] == [Rejected("too_large", "too large")]
    assert isinstance(outcomes[4], Rejected)
    assert set(twin.held) == {f"id-{number}" for number in range(9)} - {"id-4"}


def test_body_over_the_collectors_limit_is_never_posted(twin: CollectorTwin) -> None:
    outcomes = BatchSender(twin.url).send([keyed(0), keyed(1, value="1" * 6_000_000), keyed(2)])
    assert kinds(outcomes) == [Accepted, Rejected, Accepted]
    assert max(post.body_bytes for post in twin.posts) < 1000


def test_event_that_makes_the_body_unreadable_costs_no_other(twin: CollectorTwin) -> None:
    twin.script = ["400", None, "400"]
    outcomes = BatchSender(twin.url).send([keyed(0), keyed(1)])
    assert outcomes == [Accepted(repeated=True), Rejected("told_to", "as the test wants it")]


@pytest.mark.parametrize(
    "results",
    [
        [{"index": 0, "status": "accepted", "event_id": "id-of-another"}],
        [{"index": 5, "status": "accepted", "event_id": "id-0"}],
        [{"index": -1, "status": "accepted", "event_id": "id-0"}],
        [{"index": 0, "status": "accepted"}],
        [{"index": 0, "status": "perhaps", "event_id": "id-0"}],
        [{"index": 0, "status": "rejected"}],
        [{"index": 0, "status": "accepted", "event_id": "id-0"}, {"index": 0, "status": "rejected", "code": "x"}],
        [{"index": "0", "status": "accepted", "event_id": "id-0"}],
        "accepted",
    ],
)
def test_answer_that_does_not_fit_what_was_posted_is_not_believed(
    twin: CollectorTwin, results: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin, "answer", lambda *_: (202, {"results": results}))
    with stamina.set_testing(True, attempts=3):
        assert kinds(BatchSender(twin.url).send([keyed(0)])) == [Unsent]


def test_large_bodies_are_compressed_and_small_ones_are_not(twin: CollectorTwin) -> None:
    sender = BatchSender(twin.url)
    sender.send([keyed(0)])
    sender.send([keyed(number) for number in range(100)])
    assert [post.headers.get("Content-Encoding") for post in twin.posts] == [None, "gzip"]
    assert len(twin.posts[1].events) == 100


def test_key_is_sent_as_a_bearer_token_and_netrc_is_not_looked_into(
    twin: CollectorTwin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    BatchSender(twin.url, api_key="k3y").send([keyed(0)])
    BatchSender(twin.url).send([keyed(1)])
    assert [post.headers.get("Authorization") for post in twin.posts] == ["Bearer k3y", None]


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://u:p@x", "http://x?a=b", "http://x:99999"]
)
def test_address_that_can_not_be_used_is_refused_at_once(url: str) -> None:
    with pytest.raises(SetupError, match="can't be used"):
        BatchSender(url)


def test_key_that_can_not_be_sent_is_refused_without_showing_it() -> None:
    with pytest.raises(SetupError) as caught:
        BatchSender("http://127.0.0.1:1", api_key="secret\n")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["", "/", "/v1/usage", "/v1/usage/"])
def test_address_may_be_given_with_or_without_the_path(twin: CollectorTwin, suffix: str) -> None:
    assert kinds(BatchSender(twin.url + suffix).send([keyed(0)])) == [Accepted]


def test_connection_is_used_again(twin: CollectorTwin) -> None:
    sender = BatchSender(twin.url)
    before = threading.active_count()
    for number in range(5):
        sender.send([keyed(number)])
    assert threading.active_count() <= before + 1  # the twin has a thread for each connection
