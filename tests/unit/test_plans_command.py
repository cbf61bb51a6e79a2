"""`metering plans`, and docs/plans.md, whose files are read and whose commands are run as they stand."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from operations.cli import metering
from tests.unit.plan_files import CHANGE, WHOLE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
INDENTED = re.findall(r"(?:^ {4}.*\n)+", PAGE, re.MULTILINE)


def shown(first_word: str) -> str:
    """The output that the page shows, by what it begins with."""
    (block,) = (block for block in INDENTED if block.lstrip().startswith(first_word))
    return re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plans.yaml"
    path.write_text(FILES[0], encoding="utf-8")
    return path


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(metering, ["plans", *arguments], input=stdin)


def test_the_page_shows_what_a_check_prints(plans: Path) -> None:
    done = run("check", "plans.yaml")
    assert (done.exit_code, done.output) == (0, shown("plans.yaml: plans"))
    plans.write_text(FILES[0].replace("EUR", "EURO", 1), encoding="utf-8")
    done = run("check", "plans.yaml")
    assert (done.exit_code, done.stdout) == (1, shown("plans.yaml:6"))


def test_the_page_shows_what_usage_costs(plans: Path) -> None:
    assert plans.exists()
    (command,) = re.findall(r"`metering plans (rate [^`]+)`", PAGE)
    done = run(*command.split())
    assert (done.exit_code, done.output) == (0, shown("globex"))


@pytest.mark.parametrize("file", FILES)
def test_every_file_of_the_page_is_one_that_can_be_used(file: str) -> None:
    done = run("check", "-", stdin=file)
    assert done.exit_code == 0
    assert done.output.startswith("stdin: plans: 2;")


def test_a_check_says_how_many_tenants_have_plans_over_time() -> None:
    of_their_own = "tenants: {t: [{plan: small}, {plan: large, from: 2024-01-16}], u: [{plan: small}], v: small}"
    done = run("check", "-", stdin=f"{CHANGE}{of_their_own}\n")
    assert "; tenants with plans of their own: 3, 1 of them over time; months in UTC\n" in done.output


def test_without_a_month_usage_is_rated_for_this_one_in_the_plans_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Now(datetime):
        @classmethod
        def now(cls, _tz: object = None) -> datetime:
            return datetime(2024, 1, 31, 23, 30, tzinfo=UTC)

    monkeypatch.setattr("operations.plans.datetime", Now)
    done = run("rate", "-", "--tenant", "t", stdin=f"timezone: Europe/Berlin\n{WHOLE}")
    assert done.output.startswith("t, 2024-02 (Europe/Berlin), plan standard, EUR\n")


def test_the_schema_that_the_page_names_is_there() -> None:
    (path,) = re.findall(r"\$schema=(\S+)", PAGE)
    assert (ROOT / "docs" / path).resolve().is_file()


def test_each_fault_is_a_line_with_its_place_and_the_end_is_1() -> None:
    done = run("check", "-", stdin=WHOLE.replace("unit_price", "unit_prize").replace("EUR", "eur"))
    assert done.exit_code == 1
    assert len(done.stdout.splitlines()) >= 5
    assert all(re.match(r"stdin:\d+:\d+: \S", line) for line in done.stdout.splitlines())


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    done = run("check", str(tmp_path / "nowhere"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"metering: {tmp_path}/nowhere: No such file or directory\n"


def test_usage_that_no_plan_prices_is_said_to_be_billed_by_nobody() -> None:
    done = run("rate", "-", "--tenant", "t", "--usage", "fax=7", stdin=WHOLE)
    assert done.exit_code == 0
    assert done.output.endswith("not billed, since the plan has no price for it: fax 7\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tenant", "t", "--period", "2024-13"], "allowed: a month from 1970-01 to 9998-12, as 2024-01"),
        (["--tenant", "t u"], "tenant_id must be 1 to 128"),
        (["--tenant", "t", "--usage", "calls"], "--usage takes METRIC=VALUE, each metric once, not 'calls'"),
        (["--tenant", "t", "--usage", "calls=1", "--usage", "calls=2"], "each metric once, not 'calls=2'"),
        (["--tenant", "t", "--usage", "calls=-1"], "value must not be negative"),
        (["--tenant", "t", "--usage", "a b=1"], "metric must be 1 to 128"),
        (["--tenant", "t", "--period", "2024-01"], "the plan of t changes on 2024-01-16"),
    ],
)
def test_what_cannot_be_rated_is_said_and_the_end_is_2(options: list[str], words: str) -> None:
    done = run("rate", "-", *options, stdin=CHANGE)
    assert done.exit_code == 2
    assert words in done.stderr
