import hashlib
import json
import re
from pathlib import Path

import pytest

from devstack import artifacts, bootstrap, npm, steps, tools

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==(\S+)", re.MULTILINE)


def a_step(folder: Path) -> steps.Step:
    lock, product = folder / "lock", folder / "product"
    lock.write_text("one")
    product.write_text("made")
    return steps.Step("step", "a step", (lock,), ("true",), (product,))


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> steps.Step:
    monkeypatch.setattr(bootstrap, "UNFINISHED", tmp_path / "unfinished")
    monkeypatch.setattr(steps, "VENV", tmp_path / "venv")
    monkeypatch.setattr(steps, "PARTS", tmp_path)
    monkeypatch.setattr(bootstrap, "LOG", tmp_path / "log")
    return a_step(tmp_path)


def test_step_is_done_after_it_was_performed(step: steps.Step) -> None:
    assert not step.is_done()
    bootstrap.perform(step)
    assert step.is_done()


def test_step_is_done_again_when_what_goes_in_changes(step: steps.Step) -> None:
    bootstrap.perform(step)
    step.inputs[0].write_text("two")
    assert not step.is_done()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_step_is_done_again_when_what_came_out_changes(step: steps.Step, damage: str) -> None:
    bootstrap.perform(step)
    if damage == "missing":
        step.products[0].unlink()
    else:
        step.products[0].write_text("")
    assert not step.is_done()


def test_step_that_fails_leaves_no_stamp_and_says_why(step: steps.Step) -> None:
    bootstrap.perform(step)
    failing = steps.Step(step.name, step.title, step.inputs, ("sh", "-c", "echo no network; exit 3"))
    with pytest.raises(bootstrap.SetupError, match="no network"):
        bootstrap.perform(failing)
    assert not step.is_done()


@pytest.mark.parametrize(("file", "count"), [(artifacts.DYNAMODB_LOCAL_LIST, 87), (artifacts.KCL_LIST, 79)])
def test_every_jar_is_pinned_by_its_sha256(file: Path, count: int) -> None:
    pins = artifacts.maven_pins(file)
    assert len({pin.path for pin in pins}) == count
    assert all(re.fullmatch("[0-9a-f]{64}", pin.sha256) for pin in pins)


def test_kcl_pins_are_the_jars_of_the_installed_amazon_kclpy() -> None:
    jars = artifacts.kclpy_files(steps.SITE_PACKAGES)
    assert set(jars) == set(jars[0].parent.glob("*.jar"))
    found = [hashlib.sha256(jar.read_bytes()).hexdigest() for jar in jars]
    assert found == [pin.sha256 for pin in artifacts.maven_pins(artifacts.KCL_LIST)]


def test_missing_and_damaged_kcl_jars_are_replaced(tmp_path: Path) -> None:
    jars = artifacts.kclpy_files(tmp_path)
    assert artifacts.repair_kclpy(tmp_path) == [jar.name for jar in jars]
    jars[3].write_bytes(jars[3].read_bytes()[:-1])
    jars[5].unlink()
    assert artifacts.repair_kclpy(tmp_path) == [jars[3].name, jars[5].name]
    assert artifacts.repair_kclpy(tmp_path) == []


def test_locks_agree_on_versions_and_name_no_address() -> None:
    assert [lock.stem for lock in LOCKS] == ["build", "dev", "local", "run"]
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        text = lock.read_text()
        assert "://" not in text
        for name, version in PINNED.findall(text):
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_locked_package_has_its_hashes(lock: Path) -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", lock.read_text())
    assert [block for block in blocks if "==" in block and "--hash=sha256:" not in block] == []


@pytest.mark.parametrize("name", ["build", "run", "local", "dev"])
def test_every_direct_dependency_is_locked(name: str) -> None:
    locked = {found for found, _ in PINNED.findall((ROOT / "requirements" / f"{name}.txt").read_text())}
    lines = (ROOT / "requirements" / f"{name}.in").read_text().splitlines()
    direct = {re.split(r"[\s\[=#]", line)[0].replace("_", "-") for line in lines if line[:1].isalnum()}
    assert direct
    assert direct <= locked


@pytest.mark.parametrize("file", [npm.KINESIS_LOCAL_LIST, npm.BROWSER_LIST], ids=lambda file: file.stem)
def test_every_npm_package_is_pinned_by_its_integrity(file: Path) -> None:
    assert npm.npm_pins(file)
    for name, pin in npm.npm_pins(file).items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", pin.version), name
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", pin.integrity), name


def test_set_up_left_every_file_of_the_npm_packages() -> None:
    assert [file for file in npm.kinesis_local_files() + npm.browser_files() if not file.is_file()] == []


def test_the_browser_is_set_up_for_the_tests_alone() -> None:
    run, dev = ([step.name for step in steps.steps(level)] for level in ("run", "dev"))
    assert dev == [*run, "dev", "browser"]


def test_what_a_step_says_aloud_reaches_the_person(step: steps.Step, capsys: pytest.CaptureFixture[str]) -> None:
    script = f"echo 'quiet'; echo '{artifacts.ALOUD}no such browser'"
    bootstrap.perform(steps.Step(step.name, step.title, step.inputs, ("sh", "-c", script)))
    assert capsys.readouterr().out == "set-up: a step\nset-up: no such browser\n"


def test_emulators_inherit_nothing_that_would_change_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INITIALIZE_STREAMS", "other:9")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx1m")
    commands = [
        tools.kinesis_mock_command(1, tmp_path / "k", "eu-west-1"),
        tools.dynamodb_local_command(2, tmp_path / "d"),
    ]
    assert not {"INITIALIZE_STREAMS", "JAVA_TOOL_OPTIONS"} & (set(commands[0].env) | set(commands[1].env))
    json.dumps([dict(command.env) for command in commands])  # all strings
