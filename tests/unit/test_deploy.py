"""Holds docker-compose.aws.yml and deploy/Dockerfile to the code: no Docker engine is needed, and none is used."""

from __future__ import annotations

import configparser
import fnmatch
import importlib
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pathspec
import pytest
import yaml

from billing.app import create_app as billing_app
from billing.webhook import CONNECT_S, POST_S
from collector.app import create_app as collector_app
from consumer.supervisor import STOP_GRACE_S, Supervisor
from metering.gunicorn_worker import BufferingWorker
from metering.memory import MemoryStream, MemoryTables
from metering.settings import Settings
from operations.alerts import Life
from operations.cli import metering as command_group

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.aws.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
DOCKERIGNORE = ROOT / ".dockerignore"
COMPOSE = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PORTS = {"usage-collector": 8080, "billing-api": 8081}

CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
EVERYWHERE = {
    "AWS_REGION",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL_KINESIS",
    "AWS_ENDPOINT_URL_DYNAMODB",
    "KINESIS_STREAM",
    "DYNAMODB_TABLE",
    "LEDGER_TABLE",
    "REJECTED_TABLE",
    "LOG_LEVEL",
    "METERING_HOME",
    "METERS_FILE",
}
VARIABLES = {
    "usage-collector": EVERYWHERE
    | {
        "API_KEYS_FILE",
        "API_KEY_RATE_LIMIT",
        "BIND_HOST",
        "COLLECTOR_PORT",
        "KINESIS_PARTITIONS",
        "EVENT_MAX_AGE_DAYS",
        "MAX_PENDING_EVENTS",
        "COLLECTOR_LINGER_MS",
        "COLLECTOR_DEADLINE_MS",
        "METERS_STRICT",
    },
    "aggregator": EVERYWHERE
    | {
        "KCL_APPLICATION",
        "KCL_PROPERTIES",
        "WORKER_ID",
        "USAGE_WINDOW_MINUTES",
        "EVENT_MAX_AGE_DAYS",
        "LEDGER",
        "LEDGER_TTL_DAYS",
        "KINESIS_SHARDS",
    },
    "billing-api": EVERYWHERE
    | {
        "API_KEYS_FILE",
        "API_KEY_RATE_LIMIT",
        "BIND_HOST",
        "BILLING_PORT",
        "PLANS_FILE",
        "KCL_APPLICATION",
        "USAGE_WINDOW_MINUTES",
        "MIN_AS_OF_WAIT_MS",
        "ALERTS_FILE",
    },
    "alerts": EVERYWHERE
    | {
        "USAGE_WINDOW_MINUTES",
        "ALERTS_FILE",
        "ALERTS_INTERVAL_S",
        "ALERTS_WEBHOOK_URL",
        "ALERTS_WEBHOOK_SECRET",
    },
}
NOT_ON_AWS = {
    "KINESIS_PORT",  # the local stack's
    "DYNAMODB_PORT",  # the local stack's
    "AWS_ENDPOINT_URL",  # another name of AWS_ENDPOINT
    "AWS_DEFAULT_REGION",  # another name of AWS_REGION
}


class _Recording(dict[str, str]):
    """An empty environment that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return default


def settings_variables() -> set[str]:
    environment = _Recording()
    Settings.from_environment(environment)
    return environment.asked


def environment_of(service: str, outside: dict[str, str]) -> dict[str, str]:
    """What the service's container gets when Compose is called with the variables `outside`."""
    inside = {}
    for name, value in SERVICES[service]["environment"].items():
        if value is None:
            if name in outside:
                inside[name] = outside[name]
        else:
            inside[name] = substituted(str(value), outside)
    return inside


def substituted(text: str, outside: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: outside.get(match[1]) or match[2], text)


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(\d+)s", duration)
    assert match, duration
    return int(match[1])


def tool(name: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(name), *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ── The compose file ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_compose_file_keeps_to_the_compose_specification() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE_FILE)


def test_the_three_services_have_the_names_that_the_guide_uses() -> None:
    started = {name for name, definition in SERVICES.items() if "profiles" not in definition}
    assert started == {"usage-collector", "aggregator", "billing-api"}
    assert set(SERVICES) - started == {"alerts"}  # it would end at once without ALERTS_FILE


@pytest.mark.parametrize("service", SERVICES)
def test_whatever_a_service_refers_to_exists(service: str) -> None:
    definition = SERVICES[service]
    assert set(definition.get("depends_on", ())) <= set(SERVICES)
    assert set(definition.get("networks", ())) <= set(COMPOSE.get("networks", ()))
    for volume in definition.get("volumes", ()):
        source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
        assert source in COMPOSE.get("volumes", ()) or (ROOT / source).exists(), source
    context = ROOT / definition["build"]["context"]
    assert (context / definition["build"]["dockerfile"]).resolve() == DOCKERFILE


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_restarted_and_watched_and_its_log_is_bounded(service: str) -> None:
    definition = SERVICES[service]
    assert definition["restart"] in {"unless-stopped", "always"}
    assert definition["healthcheck"]["test"][0] == "CMD"  # a program of the image, no shell
    assert {"interval", "timeout", "retries", "start_period"} <= set(definition["healthcheck"])
    assert definition["init"] is True
    assert {"max-size", "max-file"} <= set(definition["logging"]["options"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_no_rights_that_it_does_not_need(service: str) -> None:
    definition = SERVICES[service]
    assert definition["read_only"] is True
    assert any(mount.split(":")[0] == "/tmp" for mount in definition["tmpfs"])  # noqa: S108 - the container's
    assert definition["cap_drop"] == ["ALL"]
    assert "cap_add" not in definition
    assert not definition.get("privileged")
    assert "no-new-privileges:true" in definition["security_opt"]
    user, group = definition["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    home = Path(environment_of(service, {})["METERING_HOME"])
    assert home.is_relative_to("/tmp")  # noqa: S108 - the one place that can be written to


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_the_variables_that_concern_it_and_no_others(service: str) -> None:
    assert set(SERVICES[service]["environment"]) == VARIABLES[service] | CREDENTIALS


def test_every_setting_reaches_some_service_or_is_left_out_on_purpose() -> None:
    assert set().union(*VARIABLES.values()) | NOT_ON_AWS == settings_variables()
    assert not NOT_ON_AWS & set().union(*VARIABLES.values())


@pytest.mark.parametrize("service", SERVICES)
def test_without_an_env_file_a_service_has_the_default_settings(service: str) -> None:
    environment = environment_of(service, {})
    found, default = Settings.from_environment(environment), Settings.from_environment({})
    expected = replace(default, home=found.home, worker_id=found.worker_id, bind_host=found.bind_host)
    assert found == expected
    if service == "aggregator":
        assert found.worker_id == "aggregator-1"
    elif service in PORTS:
        assert found.bind_host == "0.0.0.0"  # noqa: S104 - inside of the container; `ports` decides what is reachable


@pytest.mark.parametrize("service", SERVICES)
def test_what_stands_in_the_env_file_reaches_the_service(service: str) -> None:
    fixed = {"METERING_HOME", "BIND_HOST", "COLLECTOR_PORT", "BILLING_PORT"}
    outside = {name: f"from-outside-{name}" for name in VARIABLES[service] | CREDENTIALS}
    inside = environment_of(service, outside)
    assert {name: value for name, value in inside.items() if name not in fixed} == {
        name: value for name, value in outside.items() if name not in fixed
    }


def test_an_unset_credential_or_endpoint_stays_unset_rather_than_empty() -> None:
    # botocore takes empty for unset, but the Java SDK need not.
    for service in SERVICES:
        inside = environment_of(service, {})
        assert not (CREDENTIALS | {"AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_DYNAMODB"}) & set(inside)


@pytest.mark.parametrize(
    ("service", "variable", "page"),
    [
        *((service, "API_KEYS_FILE", "api-keys") for service in PORTS),
        ("billing-api", "PLANS_FILE", "plans"),
        *((service, "ALERTS_FILE", "alerts") for service in ("billing-api", "alerts")),
        *((service, "METERS_FILE", "meters") for service in SERVICES),
    ],
)
def test_a_file_of_a_setting_is_in_a_folder_that_a_service_cannot_write_to(
    service: str, variable: str, page: str
) -> None:
    mounts = dict(volume.split(":", 1)[::-1] for volume in SERVICES[service]["volumes"] if ":" in volume)
    for path in ("deploy/.env.example", f"docs/{page}.md"):
        (shown,) = re.findall(rf"{variable}=(/\S+)", (ROOT / path).read_text(encoding="utf-8"))
        source = mounts[f"{Path(shown).parent}:ro"]
        assert (ROOT / source).is_dir()  # a mounted file would stay the old one when another is moved into its place


def test_long_bodies_wait_on_a_disk_and_not_in_a_tmpfs() -> None:
    collector = SERVICES["usage-collector"]
    assert BufferingWorker.spool_folder in collector["volumes"]
    assert not any(mount.startswith(BufferingWorker.spool_folder) for mount in collector["tmpfs"])


def test_the_environment_shows_what_the_guide_says() -> None:
    shown = environment_of("aggregator", {})
    assert {name: shown[name] for name in ("AWS_REGION", "AWS_ENDPOINT", "KINESIS_STREAM", "DYNAMODB_TABLE")} == {
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": "",
        "KINESIS_STREAM": "usage-events",
        "DYNAMODB_TABLE": "usage-aggregator",
    }


def test_two_aggregators_of_one_name_cannot_run_on_one_host() -> None:
    aggregator = SERVICES["aggregator"]
    assert aggregator["container_name"] == aggregator["environment"]["WORKER_ID"]
    assert "replicas" not in aggregator.get("deploy", {})


@pytest.mark.parametrize(("service", "port"), PORTS.items())
def test_a_web_service_listens_where_it_is_published_and_asked_for_its_health(service: str, port: int) -> None:
    definition = SERVICES[service]
    environment = environment_of(service, {"COLLECTOR_PORT": "18080", "BILLING_PORT": "18081"})
    settings = Settings.from_environment(environment)
    assert {"usage-collector": settings.collector_port, "billing-api": settings.billing_port}[service] == port
    (published,) = definition["ports"]
    assert substituted(published, {}) == f"{port}:{port}"
    assert substituted(published, {"COLLECTOR_PORT": "9", "BILLING_PORT": "9"}) == f"9:{port}"
    app = (
        collector_app(MemoryStream(), settings)
        if service == "usage-collector"
        else billing_app(MemoryTables(), settings)
    )
    code = definition["healthcheck"]["test"][-1]
    compile(code, service, "exec")
    match = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", code)
    assert match
    assert int(match[1]) == port
    assert app.url_map.bind("").match(match[2])


def test_the_aggregators_health_is_the_supervisors_sign_of_life(tmp_path: Path) -> None:
    settings = replace(Settings.from_environment({}), home=tmp_path, worker_id="aggregator-1")
    command = SERVICES["aggregator"]["healthcheck"]["test"][1:]
    environment = {**os.environ, "METERING_HOME": str(tmp_path), "WORKER_ID": "aggregator-1"}

    def healthy() -> bool:
        done = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, check=False)
        return done.returncode == 0

    assert command[0] == "python"
    assert not healthy()
    supervisor = Supervisor(settings, {})
    alive = tmp_path / "consumer" / "aggregator-1" / "alive"
    alive.parent.mkdir(parents=True)
    supervisor._touch_alive()
    assert healthy()
    long_ago = time.time() - 60
    os.utime(alive, (long_ago, long_ago))
    assert not healthy()


def test_the_alerts_health_is_their_sign_of_life(tmp_path: Path) -> None:
    command = SERVICES["alerts"]["healthcheck"]["test"][1:]
    environment = {**os.environ, "METERING_HOME": str(tmp_path)}

    def healthy() -> bool:
        done = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, check=False)
        return done.returncode == 0

    assert not healthy()
    life = Life(tmp_path / "alerts")
    assert life.goes_on()
    assert healthy()
    long_ago = time.time() - 90
    os.utime(tmp_path / "alerts" / "alive", (long_ago, long_ago))
    assert not healthy()


def test_a_service_has_the_time_to_stop_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in settings_variables():
        monkeypatch.delenv(variable, raising=False)
    grace_s = {service: seconds(definition["stop_grace_period"]) for service, definition in SERVICES.items()}
    assert grace_s["aggregator"] > max(STOP_GRACE_S, 15)
    assert grace_s["alerts"] > CONNECT_S + POST_S
    assert grace_s["usage-collector"] > Settings.from_environment({}).put_deadline_ms / 1000
    for service, module in (("usage-collector", "collector"), ("billing-api", "billing")):
        assert grace_s[service] > runpy.run_module(f"{module}.gunicorn_conf")["graceful_timeout"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_command_names_what_exists(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in settings_variables():
        monkeypatch.delenv(variable, raising=False)
    program, *arguments = SERVICES[service]["command"]
    if program == "python":
        option, package = arguments
        assert option == "-m"
        assert importlib.util.find_spec(f"{package}.__main__")
        configuration = runpy.run_module(f"{package}.gunicorn_conf")
        module, _, factory = configuration["wsgi_app"].partition(":")
        assert callable(getattr(importlib.import_module(module), factory.removesuffix("()")))
    else:
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        assert re.search(rf"^{program} = ", setup["options.entry_points"]["console_scripts"], re.MULTILINE)
        assert arguments[0] in command_group.commands


def test_the_example_of_an_env_file_names_variables_of_the_compose_file() -> None:
    example = (ROOT / "deploy" / ".env.example").read_text(encoding="utf-8")
    named = set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE))
    assert named
    assert named <= set().union(*VARIABLES.values()) | CREDENTIALS


# ── The Dockerfile ───────────────────────────────────────────────────────────────────────────────────────────────────


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order: (name, arguments on one line)."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    split = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest) for name, rest in split]


def arguments_of(name: str) -> list[str]:
    return [arguments for found, arguments in instructions() if found == name]


def copied() -> list[str]:
    """What COPY takes from the build's context."""
    sources: list[str] = []
    for arguments in arguments_of("COPY"):
        if "--from=" not in arguments:
            sources += arguments.split()[:-1]
    return sources


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path into the build's context: the last line that matches it or a parent decides."""
    included = True
    for line in DOCKERIGNORE.read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.startswith("!")
        pattern = pattern.removeprefix("!")
        parts = path.split("/")
        parents = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        if any(fnmatch.fnmatch(parent, pattern) for parent in parents):
            included = wanted
    return included


def test_dockerfile_has_nothing_that_the_linter_minds() -> None:
    tool("hadolint", "--no-color", DOCKERFILE)


def test_base_images_are_one_and_pinned() -> None:
    bases = {arguments.split()[0] for arguments in arguments_of("FROM")}
    assert len(bases) == 1
    match = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-[a-z]+", bases.pop())
    assert match
    assert int(match[1]) >= 11


def test_everything_copied_exists_is_tracked_and_is_in_the_context() -> None:
    assert copied()
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".gitignore").read_text(encoding="utf-8").splitlines())
    assert ignored.match_file(".venv/bin/python")
    for source in copied():
        assert (ROOT / source).exists(), source
        assert in_context(source), source
        assert not ignored.match_file(source), source


def test_nothing_else_gets_into_the_context() -> None:
    for path in (".git/config", ".venv/bin/python", ".metering/x", "tests/unit/x.py", ".env", "bench/x.py"):
        assert not in_context(path), path
    assert not in_context("metering/__pycache__/x.pyc")
    assert in_context("properties/consumer.properties")


def test_all_that_the_services_are_made_of_is_copied() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {name.rstrip("*") for name in setup["options.packages.find"]["include"].split()}
    local_alone = {"devstack"}
    assert packages - local_alone | {"properties"} <= set(copied())


def test_packages_come_with_hashes_and_without_the_local_stacks() -> None:
    installs = [
        install
        for arguments in arguments_of("RUN")
        for install in re.findall(r"pip install[^&]*", arguments)
        if "--editable" not in install
    ]
    assert installs
    for install in installs:
        assert "--require-hashes" in install
        (lock,) = re.findall(r"--requirement (\S+)", install)
        assert lock in {"requirements/build.txt", "requirements/run.txt"}
        assert lock in copied()
    assert "apt-get" not in DOCKERFILE.read_text(encoding="utf-8")


def test_the_sums_of_the_kcls_jars_are_checked_as_the_list_writes_them() -> None:
    (check,) = [arguments for arguments in arguments_of("RUN") if "sha256sum" in arguments]
    match = re.search(r"while .+? done", check, re.DOTALL)
    assert match
    listed = ROOT / "devstack" / "kcl-jars.txt"
    loop = f"jars=/jars; {match[0]} < {shlex.quote(str(listed))}"
    done = subprocess.run(["sh", "-euc", loop], capture_output=True, text=True, check=True).stdout.splitlines()
    pinned = [line for line in listed.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(done) == len(pinned) > 70
    assert all(re.fullmatch(r"[0-9a-f]{64}  /jars/[\w.-]+\.jar", line) for line in done)
    assert any(line.endswith("/amazon-kinesis-client-3.1.3.jar") for line in done)


def test_image_runs_as_the_user_that_compose_names_and_without_a_shell() -> None:
    (user,) = arguments_of("USER")
    assert {definition["user"] for definition in SERVICES.values()} == {user}
    for arguments in arguments_of("CMD") + arguments_of("ENTRYPOINT"):
        assert isinstance(yaml.safe_load(arguments), list)
    assert len(arguments_of("CMD")) == 1
