"""Batches of events on their way to a collector: posted, and posted again until each event has its outcome.

Where it sits: metering.client and `metering send` hand in events; both rely on the same rules, which are these.

    post ─► 202, 207, 422: each event is accepted or rejected, which is final
      ▲  └► 503: some may be final; the others are posted again, under the same ids
      │  └► no answer, 408, 429, 5xx, an answer that names not all events: what is not final is posted again
      └──────┘     after Retry-After, or after a growing wait with jitter, until RETRY_S is over
         └► 413 and a body that is no JSON to the collector: in halves, so that one event costs no other
         └► anything else (401, 404, a redirect): no use; what is not final is Unsent

An event is safe to post again because of its id: the ledger counts an id once, for LEDGER_TTL_DAYS (35). Events without
an id must not come here. Over 300 lines, so that what is posted again, and when, stands in one place.
"""

from __future__ import annotations

import email.utils
import gzip
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import msgspec
import requests
import stamina

from metering.errors import InvalidEventError, MeteringError, ServiceUnavailableError, SetupError

RETRY_S = 60.0
"""How long a batch is tried, from its first post on."""
ANSWER_WAIT_S_MAX = 30.0
"""How long one post waits for its answer: the collector gives up after COLLECTOR_DEADLINE_MS (10 s)."""
CONNECT_WAIT_S_MAX = 5.0
BODY_BYTES_MAX = 5 * 1024 * 1024
"""What the collector takes, before compression."""
COMPRESSED_FROM_BYTES = 1024
REASON_LENGTH_MAX = 300

_NAMES_EVENTS = frozenset({202, 207, 422, 503})


@dataclass(frozen=True, slots=True)
class KeyedEvent:
    """An event as it is posted. encoded: one JSON object that holds event_id.

    event_id: None only where the object holds something else in its place, for the collector to reject.
    """

    event_id: str | None
    encoded: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The stream holds the event. repeated: it was posted more than once, because an answer was missing."""

    repeated: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """The collector refused the event; posting it again is no use. code: the stable code of the rule."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Unsent:
    """The event is not known to be held, and may be: send it again under the same id. reason: one line."""

    reason: str


Outcome = Accepted | Rejected | Unsent


class BatchSender:
    """Posts batches to one collector over one connection; for one thread at a time.

    url: the collector's, as http://127.0.0.1:8080; /v1/usage is added. api_key: sent as a bearer token, or None.
    retry_s: how long a batch is tried, > 0; the last post may take ANSWER_WAIT_S_MAX beyond it.
    on_retry: told why, in one line, each time before a wait.
    Raises SetupError when `url` or `api_key` can't be used.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retry_s: float = RETRY_S,
        answer_wait_s: float = ANSWER_WAIT_S_MAX,
        on_retry: Callable[[str], object] | None = None,
    ) -> None:
        self.url = _usage_url(url)
        self._retry_s = retry_s
        self._timeout_s = (min(CONNECT_WAIT_S_MAX, answer_wait_s), answer_wait_s)
        self._on_retry = on_retry
        self._session = requests.Session()
        self._session.auth = _Bearer(api_key)

    def send(self, events: Sequence[KeyedEvent]) -> list[Outcome]:
        """Return the outcome of each event, in their order; never raises for what the collector or the network does.

        events: any number that fits into memory; a body that is too large is halved. Takes `retry_s` and one answer's
        time at most, once for the whole of it.
        """
        course = _Course(events, time.monotonic() + self._retry_s)
        parts = [list(range(len(events)))] if events else []
        while parts and course.reason is None:
            part = parts.pop()
            try:
                self._deliver(course, part)
            except InvalidEventError as error:
                left = course.left_of(part)
                if len(left) == 1:
                    course.outcomes[left[0]] = Rejected(error.code, error.detail)
                else:
                    middle = len(left) // 2
                    parts += [left[middle:], left[:middle]]
            except MeteringError as error:
                course.reason = str(error)
        return course.all_outcomes()

    def close(self) -> None:
        """Close the connection; a later send opens another."""
        self._session.close()

    def _deliver(self, course: _Course, part: Sequence[int]) -> None:
        """Return when each event of `part` has a final outcome; raise what made it end before."""

        def pause(error: Exception) -> bool | float:
            """Say whether to post again: no, after the usual wait, or after this many seconds."""
            if not isinstance(error, _AgainError):
                return False
            left_s = course.deadline - time.monotonic()
            if left_s <= error.retry_after_s:
                return False  # it would be over before the collector wants to hear of it
            if self._on_retry is not None:
                self._on_retry(str(error))
            return error.retry_after_s or True

        for attempt in stamina.retry_context(
            on=pause,
            attempts=None,
            timeout=max(course.deadline - time.monotonic(), 0.001),
            wait_initial=0.2,
            wait_max=5.0,
        ):
            with attempt:
                self._post(course, course.left_of(part))

    def _post(self, course: _Course, left: Sequence[int]) -> None:
        events = [course.events[index] for index in left]
        body = b"[%b]" % b",".join(event.encoded for event in events)
        if len(body) > BODY_BYTES_MAX:
            raise InvalidEventError("too_large", f"an event may have at most {BODY_BYTES_MAX - 2} bytes")
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if len(body) > COMPRESSED_FROM_BYTES:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, compresslevel=6, mtime=0)
        course.posted(left)
        try:
            answer = self._session.post(
                self.url, data=body, headers=headers, timeout=self._timeout_s, allow_redirects=False
            )
        except requests.RequestException as error:
            raise _AgainError(_line(f"no answer from {self.url}: {error}")) from error
        course.settle(left, answer)
        if course.left_of(left):
            _raise_for(answer, self.url)


class _Course:
    """What is known so far of the events of one send. reason: why what is not final will not become so."""

    def __init__(self, events: Sequence[KeyedEvent], deadline: float) -> None:
        self.events = events
        self.deadline = deadline
        self.outcomes: dict[int, Accepted | Rejected] = {}
        self.reason: str | None = None
        self._posts = [0] * len(events)

    def left_of(self, part: Sequence[int]) -> list[int]:
        return [index for index in part if index not in self.outcomes]

    def posted(self, part: Sequence[int]) -> None:
        for index in part:
            self._posts[index] += 1

    def settle(self, part: Sequence[int], answer: requests.Response) -> None:
        """Take from an answer what it says for good. Only what names an event as it was sent is believed."""
        results = _read(answer).results if answer.status_code in _NAMES_EVENTS else []
        if len({result.index for result in results}) < len(results):
            return  # an index twice: whatever this answers, it is not what was posted
        for result in results:
            if not 0 <= result.index < len(part):
                continue
            index = part[result.index]
            event_id = self.events[index].event_id
            if result.status == "accepted" and event_id in {None, result.event_id}:
                self.outcomes[index] = Accepted(repeated=self._posts[index] > 1)
            elif result.status == "rejected" and result.code:
                self.outcomes[index] = Rejected(result.code, result.detail)

    def all_outcomes(self) -> list[Outcome]:
        unsent = Unsent(self.reason or "")
        return [self.outcomes.get(index, unsent) for index in range(len(self.events))]


class _AgainError(ServiceUnavailableError):
    """Not all events of a post are final yet. retry_after_s: what the collector asks for, 0 for nothing."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _Result(msgspec.Struct):
    index: int
    status: str
    event_id: str | None = None
    code: str | None = None
    detail: str = ""


class _Answer(msgspec.Struct):
    results: list[_Result] = []
    code: str | None = None
    detail: str = ""


class _Bearer(requests.auth.AuthBase):
    """Sends the key. Without one it sends nothing, and keeps requests from looking into ~/.netrc for some."""

    def __init__(self, api_key: str | None) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
            raise SetupError("the API key can't be used: it may hold printable ASCII only, and no space around it")
        self._api_key = api_key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def _usage_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError as error:
        raise SetupError(f"the collector's address {url!r} can't be used: {error}") from error
    if not usable or parts.query or parts.fragment:
        raise SetupError(
            f"the collector's address {url!r} can't be used: allowed is one such as http://127.0.0.1:8080, "
            "without a key or a query in it"
        )
    return url.rstrip("/").removesuffix("/v1/usage") + "/v1/usage"


def _read(answer: requests.Response) -> _Answer:
    try:
        return msgspec.json.decode(answer.content, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Answer()  # not the collector's: a proxy's page


def _raise_for(answer: requests.Response, url: str) -> None:
    """Raise what an answer means for the events that it did not settle."""
    status, said = answer.status_code, _read(answer)
    words = _line(f"{url} answers {status}" + (f" {said.code}: {said.detail}" if said.code else ""))
    if status == 413 or (status in {400, 422} and said.code and not said.results):
        raise InvalidEventError(said.code or "too_large", said.detail or words)
    if status in _NAMES_EVENTS or status in {408, 429} or status >= 500:
        raise _AgainError(words, _retry_after_s(answer.headers.get("Retry-After", "")))
    if answer.is_redirect:
        words = _line(f"{words}, a redirect to {answer.headers['Location']}: give the address that it leads to")
    raise SetupError(words)


def _retry_after_s(text: str) -> float:
    """Return the seconds that a Retry-After asks for (RFC 9110, section 10.2.3); 0 when it asks for nothing."""
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 10 else math.inf
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _line(text: str) -> str:
    """Return text from outside as one line that is short and does nothing to a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)[:REASON_LENGTH_MAX]
