"""The three kinds of error, told apart by what the caller does: refuse the input, try again, or crash.

1. Bad input: InvalidEventError, InvalidRecordError and InvalidRangeError. The services answer 4xx, the consumer writes
   a rejected row.
2. A service is away: StoreUnavailableError and StreamUnavailableError. Bounded retry; 503 at the edge.
3. Anything else crashes. SetupError is the part of it that a person can mend: it is printed as one line.
"""

from __future__ import annotations


class MeteringError(Exception):
    """Base of all errors that this system raises on purpose."""


class InvalidEventError(MeteringError):
    """An event, or the JSON that should have held one, breaks a rule of the API.

    code: the stable code of the rule (`invalid_value`, `unknown_field`, …).
    detail: one sentence for the person who sent it; names the field and never quotes more than 64 characters of it.
    field: the field at fault, or None when the event as a whole is.
    """

    def __init__(self, code: str, detail: str, field: str | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.field = field


class InvalidRangeError(MeteringError):
    """A range of time that can't be answered for, or not as it is asked for. Billing answers 400.

    code: a stable code (`invalid_range`, `timezone_needs_smaller_windows`, …); detail: one sentence for the person who
    asked; parameter: the query parameter at fault, or None. window_minutes: the USAGE_WINDOW_MINUTES that would do, for
    what is counted from then on; None when none would, or when it is not about that.
    """

    def __init__(
        self, code: str, detail: str, parameter: str | None = None, *, window_minutes: int | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.parameter = parameter
        self.window_minutes = window_minutes


class InvalidRecordError(MeteringError):
    """A Kinesis record that holds neither an envelope nor an event; counts as one rejected event."""

    code = "malformed_record"

    def __init__(self, detail: str) -> None:
        super().__init__(f"{self.code}: {detail}")
        self.detail = detail


class ServiceUnavailableError(MeteringError):
    """A service did not do what was asked and may do it later; the same call is safe to repeat."""


class StoreUnavailableError(ServiceUnavailableError):
    """DynamoDB throttled, failed or could not be reached."""


class StreamUnavailableError(ServiceUnavailableError):
    """Kinesis throttled, failed or could not be reached."""


class SetupError(MeteringError):
    """The environment is not fit to run in; the message is one line that says what is wrong and how to mend it."""


class InvalidSettingError(SetupError):
    """An environment variable holds a value that can't be used.

    The message names the variable, the value and what is allowed.
    """

    def __init__(self, variable: str, value: str, allowed: str) -> None:
        super().__init__(f"{variable}={value!r} can't be used: {allowed}")
        self.variable = variable


class MissingResourceError(SetupError):
    """A table or the stream does not exist; `metering setup` makes it."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"the {kind} {name!r} does not exist: `metering setup` makes it")
        self.kind = kind
        self.name = name


class AccessRefusedError(SetupError):
    """AWS refused the credentials, or they lack a permission, or there are none."""
