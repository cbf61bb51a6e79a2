from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from collector.lanes import ENVELOPE_BYTES_MAX, Lanes, Piece
from collector.submissions import Submission
from metering.envelopes import encode_event
from metering.kinesis import PUT_BYTES_MAX, PUT_RECORDS_MAX
from metering.outgoing import OutgoingEvent
from metering.partitions import partition_key
from tests.unit.collector_support import event_with, values_in


def waiting(*values: int, at: float = 0.0, padding: int = 0) -> Piece:
    """A piece of one event for each value, 1 when none is given."""
    events = [
        OutgoingEvent("tenant-123", None, 0, encode_event(event_with(value=value)) + b" " * padding)
        for value in values or (1,)
    ]
    return Piece(Submission(events), range(len(events)), at)


def values_of(pieces: Sequence[Piece]) -> list[int]:
    return [int(json.loads(event)["value"]) for piece in pieces for event in piece.encoded()]


def lanes_with(*, linger_s: float = 0.0, deadline_s: float = 10.0) -> Lanes:
    ids = count()
    return Lanes(linger_s=linger_s, deadline_s=deadline_s, new_batch_id=lambda: f"batch-{next(ids)}")


def test_events_of_one_partition_share_a_record() -> None:
    lanes = lanes_with()
    for partition, value in ((7, 1), (3, 2), (7, 3)):
        lanes.add(partition, waiting(value))
    batches = lanes.take(0.0)
    assert [(batch.partition, values_in(batch.data)) for batch in batches] == [(7, [1, 3]), (3, [2])]


def test_each_batch_has_an_id_of_its_own() -> None:
    lanes = Lanes(linger_s=0.0, deadline_s=10.0)
    lanes.add(1, waiting())
    lanes.add(2, waiting())
    ids = [json.loads(batch.data)["batch_id"] for batch in lanes.take(0.0)]
    assert len(set(ids)) == 2
    assert all(len(batch_id) == 32 and int(batch_id, 16) for batch_id in ids)


def test_batch_is_closed_before_it_passes_its_target_and_the_next_one_fits_no_better() -> None:
    lanes = lanes_with()
    for value in range(5000):
        lanes.add(1, waiting(value))
    seen: list[int] = []
    sizes: list[int] = []
    while lanes:
        (batch,) = lanes.take(0.0)
        sizes.append(len(batch.data))
        assert batch.size == sizes[-1]
        seen += values_in(batch.data)
        lanes.leave(batch)
    assert seen == list(range(5000))
    assert max(sizes) <= ENVELOPE_BYTES_MAX
    assert min(sizes[:-1]) > ENVELOPE_BYTES_MAX - 200


def test_events_of_one_request_are_split_where_a_record_is_full_and_keep_their_places() -> None:
    lanes = lanes_with()
    piece = waiting(*range(30), padding=30_000)
    lanes.add(1, piece)
    ended: list[int] = []
    while lanes:
        (batch,) = lanes.take(0.0)
        [part] = batch.pieces
        assert part.submission is piece.submission
        assert values_in(batch.data) == list(part.indexes)
        assert batch.events == len(part.indexes) <= ENVELOPE_BYTES_MAX // 30_000
        ended += part.indexes
        lanes.leave(batch)
    assert ended == list(range(30))


def test_event_larger_than_the_target_goes_alone() -> None:
    lanes = lanes_with()
    for value, padding in ((1, 0), (2, 300_000), (3, 0)):
        lanes.add(1, waiting(value, padding=padding))
    puts: list[list[int]] = []
    while lanes:
        (batch,) = lanes.take(0.0)
        puts.append(values_in(batch.data))
        lanes.leave(batch)
    assert puts == [[1], [2], [3]]


def test_call_holds_at_most_500_records() -> None:
    lanes = lanes_with()
    for partition in range(PUT_RECORDS_MAX + 3):
        lanes.add(partition, waiting(partition))
    first = lanes.take(0.0)
    assert len(first) == PUT_RECORDS_MAX
    for batch in first:
        lanes.leave(batch)
    assert [batch.partition for batch in lanes.take(0.0)] == [500, 501, 502]


def test_call_holds_at_most_5_mib_with_its_keys() -> None:
    lanes = lanes_with()
    for partition in range(400):
        lanes.add(partition, waiting(partition, padding=24_000))
    first = lanes.take(0.0)
    size = sum(len(batch.data) + len(partition_key(batch.partition)) for batch in first)
    assert PUT_BYTES_MAX - 25_000 < size <= PUT_BYTES_MAX
    for batch in first:
        lanes.leave(batch)
    assert len(first) + len(lanes.take(0.0)) == 400


def test_linger_ends_with_the_oldest_event_and_takes_all_along() -> None:
    lanes = lanes_with(linger_s=0.5)
    assert lanes.due_at() == math.inf
    lanes.add(1, waiting(1, at=10.0))
    lanes.add(2, waiting(2, at=10.4))
    assert lanes.due_at() == 10.5
    assert lanes.due_at(linger=False) == 10.0
    assert [batch.partition for batch in lanes.take(10.5)] == [1, 2]


def test_lane_with_a_refused_batch_waits_while_others_go() -> None:
    lanes = lanes_with()
    lanes.add(1, waiting(1))
    (refused,) = lanes.take(0.0)
    lanes.put_again(refused, 5.0)
    lanes.add(1, waiting(2, at=1.0))
    lanes.add(2, waiting(3, at=1.0))
    (other,) = lanes.take(1.0)
    assert values_in(other.data) == [3]
    lanes.leave(other)
    assert lanes.take(4.9) == []
    assert lanes.due_at() == 5.0
    assert lanes.take(5.0) == [refused]


def test_nothing_is_taken_while_the_stream_is_away_but_deadlines_hold() -> None:
    lanes = lanes_with(deadline_s=3.0)
    lanes.add(1, waiting(1))
    lanes.hold_back(4.0)
    assert lanes.take(3.9) == []
    assert lanes.due_at() == 3.0
    (late,) = lanes.expire(3.0)
    assert late.events == 1
    assert not lanes


def test_batch_expires_with_its_oldest_event_and_waiting_events_each_by_themselves() -> None:
    lanes = lanes_with(deadline_s=10.0)
    lanes.add(1, waiting(1, at=0.0))
    lanes.add(1, waiting(2, at=4.0))
    (batch,) = lanes.take(4.0)
    batch.maybe_held = True
    lanes.put_again(batch, 100.0)
    lanes.add(1, waiting(3, at=5.0))
    lanes.add(1, waiting(4, at=6.0))
    assert lanes.expire(9.9) == []
    assert [(late.events, late.maybe_held) for late in lanes.expire(10.0)] == [(2, True)]
    assert [(late.events, late.maybe_held) for late in lanes.expire(15.0)] == [(1, False)]
    assert values_in(lanes.take(15.0)[0].data) == [4]


@given(st.data())
def test_each_event_leaves_once_and_in_order_whatever_the_stream_does(data: st.DataObject) -> None:
    """In each partition: an event is first put only when all before it have left, whatever is refused or expires."""
    lanes = lanes_with(linger_s=1.0, deadline_s=20.0)
    partition_of_value: dict[int, int] = {}
    left: list[int] = []
    first_put: dict[int, int] = {}
    bytes_of_batch: dict[str, bytes] = {}
    now = 0.0
    for step in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from([0.0, 0.5, 3.0]))
        for _ in range(data.draw(st.integers(0, 3))):
            first, partition = len(partition_of_value), data.draw(st.integers(0, 2))
            values = range(first, first + data.draw(st.integers(1, 4)))
            partition_of_value |= dict.fromkeys(values, partition)
            lanes.add(partition, waiting(*values, at=now, padding=data.draw(st.sampled_from([0, 100_000]))))
        for late in lanes.expire(now):
            left += values_of(late.pieces)
        batches = lanes.take(now)
        assert len({batch.partition for batch in batches}) == len(batches)
        for batch in batches:
            batch_id = json.loads(batch.data)["batch_id"]
            assert bytes_of_batch.setdefault(batch_id, batch.data) == batch.data
            for value in values_in(batch.data):
                first_put.setdefault(value, step)
                earlier = [v for v, p in partition_of_value.items() if p == batch.partition and v < value]
                inside = values_in(batch.data)
                assert all(v in inside or v in left for v in earlier)
            if data.draw(st.booleans()):
                lanes.leave(batch)
                left += values_of(batch.pieces)
            else:
                lanes.put_again(batch, now + data.draw(st.sampled_from([0.0, 1.0, 30.0])))
    left += values_of(lanes.leave_all())
    assert sorted(left) == sorted(partition_of_value)
    assert not lanes
