"""Holds billing to its as_of while things are killed: all events that the stream held at that time are in."""

from __future__ import annotations

import threading
from datetime import datetime
from types import TracebackType
from typing import Self

import requests

from tests.e2e.truth import TENANT_PREFIX, Truth

INTERVAL_S = 0.1


class BillingWatcher:
    """Reads the totals of one tenant of a load again and again until the end of the block, then judges the answers."""

    def __init__(self, url: str, truth: Truth, load_name: str) -> None:
        self._tenant_id = f"{TENANT_PREFIX}{load_name}-0"
        self._url = f"{url}/v1/tenants/{self._tenant_id}/usage"
        self._truth = truth
        self._stop = threading.Event()
        self._answers: list[tuple[datetime, int]] = []
        self._failures: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is not None:
            return
        assert not self._failures, self._failures
        assert self._answers
        held_at = [sent.held_at for sent in self._truth.sent() if sent.tenant_id == self._tenant_id]
        for as_of, events in self._answers:
            held = sum(moment <= as_of for moment in held_at)
            assert events >= held, f"as of {as_of} the stream held {held} events of {self._tenant_id}, shown: {events}"

    def _run(self) -> None:
        with requests.Session() as session:
            while not self._stop.wait(INTERVAL_S):
                try:
                    answer = session.get(self._url, timeout=30)
                    if answer.status_code not in {200, 404}:
                        self._failures.append(f"{answer.status_code} {answer.text}")
                        return
                    shown = answer.json()
                except (requests.RequestException, ValueError) as error:
                    self._failures.append(repr(error))
                    return
                if shown.get("as_of") is not None:  # a 404 leaves out what is not known
                    events = sum(total["events"] for total in shown.get("totals", []))
                    self._answers.append((datetime.fromisoformat(shown["as_of"]), events))
