"""METERS_FILE: read, held to meters.schema.json and to the rule for metrics. Every fault has a line and a column.

The schema lies beside this module, for editors too: docs/meters.md says how.
"""

from __future__ import annotations

from pathlib import Path

from metering.meters import NO_METERS, Aggregation, Meter, Meters
from metering.settings import Settings
from metering.yaml_kinds import RuleReader, YamlKind


class _Reader(RuleReader[Meters]):
    def made(self) -> Meters:
        meters: dict[str, Meter] = {}
        for metric, members in self.file.value["meters"].items():
            self.check_name(("meters", metric), metric, "metric", of_name=True)
            said = members or {}
            aggregation = Aggregation(said.get("aggregation", Aggregation.SUM))
            meters[metric] = Meter(metric, aggregation, said.get("unit"), said.get("description"))
        return Meters(meters)


METERS_FILE = YamlKind("METERS_FILE", Path(__file__).with_name("meters.schema.json"), _Reader)


def meters_of(settings: Settings) -> Meters:
    """Return the meters of METERS_FILE, NO_METERS without one. Raises InvalidSettingError as METERS_FILE.read."""
    return METERS_FILE.read(settings.meters_file) if settings.meters_file else NO_METERS
