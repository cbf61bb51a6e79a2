"""The short form of the torture run, and the proof that it can fail: its control."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.faults import PROCESS_FAULTS, SHARD_FAULTS, WIRE_FAULTS
from tests.torture.run import torture

SEED = 1
EVENTS_S = 40.0
KINDS = {**PROCESS_FAULTS, **SHARD_FAULTS, **WIRE_FAULTS}


@pytest.mark.timeout(400)
def test_no_row_differs_whatever_is_killed_stopped_or_lost(folder: Path, urls: tuple[str, str]) -> None:
    report = torture(folder, urls, duration_s=40, seed=SEED, events_s=EVENTS_S, say=print)
    assert not report.differences, "\n".join(report.lines())
    played = report.faults.recovered_s.keys()
    assert len(played) > len(KINDS) / 2, "\n".join(report.lines())
    assert report.comparison.events > 0
    assert report.comparison.duplicates > 0
    assert report.comparison.rejected > 0
    assert report.known.voided, "\n".join(report.lines())


@pytest.mark.timeout(300)
def test_without_fence_and_claims_the_same_run_shows_differences(folder: Path, urls: tuple[str, str]) -> None:
    report = torture(folder, urls, duration_s=10, seed=SEED, events_s=EVENTS_S, control=True, say=print)
    assert report.comparison.rows_wrong > 0, "\n".join(report.lines())
    assert report.comparison.events_surplus > 0, "\n".join(report.lines())
    assert report.audit[0] != 0, report.audit
