"""What all tests share: the settings of an empty environment, and hypothesis without a clock."""

from __future__ import annotations

import signal

import hypothesis
import pytest

from metering.settings import Settings

# Two busy cores make a slow example prove nothing; `print_blob` lets a failure be run again.
hypothesis.settings.register_profile("metering", deadline=None, print_blob=True)
hypothesis.settings.load_profile("metering")

# A shell starts what runs in the background without Ctrl-C, and our children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def settings() -> Settings:
    return Settings.from_environment({})
