"""What all tests share: the settings of an empty environment, and hypothesis without a clock."""

from __future__ import annotations

import hypothesis
import pytest

from metering.settings import Settings

# Two busy cores make a slow example prove nothing; `print_blob` lets a failure be run again.
hypothesis.settings.register_profile("metering", deadline=None, print_blob=True)
hypothesis.settings.load_profile("metering")


@pytest.fixture
def settings() -> Settings:
    return Settings.from_environment({})
