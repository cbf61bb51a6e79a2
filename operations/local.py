"""The note that a running local stack leaves in METERING_HOME, and the environment that points a command at it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from metering.errors import SetupError
from metering.settings import Settings

NOTE = "local.json"
REGION = "us-east-1"
ACCESS_KEY = "local"
"""The emulators accept any key; DynamoDB Local with -sharedDb keeps one database for all."""


@dataclass(frozen=True, slots=True)
class LocalStack:
    """Where a running local stack answers. pid: of the `metering up` that runs it."""

    pid: int
    kinesis_url: str
    dynamodb_url: str
    collector_url: str
    billing_url: str

    def write(self, home: Path) -> None:
        """Leave the note in `home`, in one step: a reader sees the old one or the new one."""
        part = home / (NOTE + ".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(home / NOTE)

    def remove(self, home: Path) -> None:
        """Take the note away."""
        (home / NOTE).unlink(missing_ok=True)

    @classmethod
    def read(cls, home: Path) -> LocalStack:
        """Read the note. Raises SetupError when no local stack has left one."""
        try:
            return cls(**json.loads((home / NOTE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise SetupError(f"no local stack runs with METERING_HOME={home}: start one with `make run`") from error

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return `environment` with the stack's endpoints, region and keys in place of any others."""
        return {
            **{name: value for name, value in environment.items() if name not in _REPLACED},
            "AWS_ENDPOINT_URL_KINESIS": self.kinesis_url,
            "AWS_ENDPOINT_URL_DYNAMODB": self.dynamodb_url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
            # No look-up of credentials or regions anywhere else.
            "AWS_EC2_METADATA_DISABLED": "true",
        }


_REPLACED = frozenset({"AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"})


def adopt(environment: Mapping[str, str]) -> None:
    """Make `environment` this process's own: botocore reads credentials from nowhere else."""
    values = dict(environment)
    os.environ.clear()
    os.environ.update(values)


def local_settings(environment: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """Return the settings for the running local stack, and the environment for clients and processes.

    Raises SetupError when none runs.
    """
    home = Settings.from_environment(environment).home
    local = LocalStack.read(home).environment(environment)
    return Settings.from_environment(local), local
