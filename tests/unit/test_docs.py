"""Holds the documentation to the code: what a page names exists, and what it shows a person to type works."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore import xform_name
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from werkzeug.exceptions import MethodNotAllowed, NotFound

from billing.app import create_app as billing_app
from collector.app import create_app as collector_app
from consumer.kcl_properties import refuse_unknown
from metering.aws import store_errors, stream_errors
from metering.errors import InvalidSettingError, MeteringError, MissingResourceError
from metering.events import decode_json, parse_event
from metering.memory import MemoryStream, MemoryTables
from metering.settings import Settings
from operations.cli import metering as command_group
from operations.provision import tables

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "troubleshooting.md"
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in {"build", "node_modules"} for part in page.relative_to(ROOT).parts)
)
SERVICES = set(yaml.safe_load((ROOT / "docker-compose.aws.yml").read_text(encoding="utf-8"))["services"])

VARIABLES_OF_OTHERS = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "JAVA_HOME",
    "KCL_MVN_REPO_SEARCH_URL",  # amazon_kclpy's build
    "DURATION_S",  # make torture
    "METERING_API_KEY",  # metering send
    "LD_LIBRARY_PATH",  # the dynamic loader
    "WEB_CONCURRENCY",  # gunicorn
    "GUNICORN_CMD_ARGS",  # gunicorn
    "HTTPS_PROXY",  # pip, npm
    "PIP_CERT",  # pip
    "PIP_INDEX_URL",  # pip
    "REQUESTS_CA_BUNDLE",  # requests
    "NODE_EXTRA_CA_CERTS",  # Node
}
SAID_BY_THE_KCL = {"Unable to retrieve instance metadata"}
NO_VARIABLES = {
    "TRIM_HORIZON",
    "SHARD_END",
    "AT_TIMESTAMP",
    "AT_TRIM_HORIZON",
    "UNIFORM_SCALING",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    # of the torture run, on make's command line
    "DURATION_S",
    "SEED",
}

WHAT_THE_OLD_GUIDE_SHOWS = [
    # commands
    "docker compose -f docker-compose.aws.yml ps",
    "docker compose -f docker-compose.aws.yml logs aggregator",
    "docker compose -f docker-compose.aws.yml logs -f aggregator",
    'docker compose -f docker-compose.aws.yml exec aggregator env | grep -E "AWS_|KINESIS_|DYNAMODB_"',
    "docker compose -f docker-compose.aws.yml logs aggregator | tail -20",
    "docker compose -f docker-compose.aws.yml logs usage-collector",
    "docker compose -f docker-compose.aws.yml logs -f usage-collector",
    (
        'curl -X POST http://localhost:8080/v1/usage -H "Content-Type: application/json" -d \'{"tenant_id":'
        ' "tenant-123", "metric": "api_calls", "value": 10, "timestamp": "2024-01-15T10:00:00Z"}\''
    ),
    (
        'curl -X POST http://localhost:8080/v1/usage -H "Content-Type: application/json" -d \'{"tenant_id": "test",'
        ' "metric": "test", "value": 1, "timestamp": "2024-01-15T10:00:00Z"}\''
    ),
    (
        "aws dynamodb get-item --table-name usage-aggregator --key"
        ' \'{"pk": {"S": "TENANT#tenant-123"}, "sk": {"S": "METRIC#api_calls"}}\' --region us-east-1'
    ),
    "aws kinesis describe-stream --stream-name usage-events --region us-east-1",
    "aws dynamodb describe-table --table-name usage-aggregator --region us-east-1",
    (
        "aws dynamodb update-item --table-name usage-aggregator --key"
        ' \'{"pk": {"S": "TENANT#test"}, "sk": {"S": "METRIC#test"}}\''
        ' --update-expression "ADD #usage :inc SET last_updated = :now"'
        ' --expression-attribute-names \'{"#usage": "usage"}\''
        ' --expression-attribute-values \'{":inc": {"N": "1"}, ":now": {"S": "2024-01-15T10:00:00Z"}}\''
        " --region us-east-1"
    ),
    # names and values
    "`usage-collector`",
    "`aggregator`",
    "`billing-api`",
    "`Up`",
    "`AWS_REGION=us-east-1`",
    "`AWS_ENDPOINT=`",
    "`KINESIS_STREAM=usage-events`",
    "`DYNAMODB_TABLE=usage-aggregator`",
    "`pk`",
    "`sk`",
    ".env",
    "kinesis:DescribeStream",
    "kinesis:GetShardIterator",
    "kinesis:GetRecords",
    "dynamodb:UpdateItem",
    "dynamodb:DescribeTable",
    # lines of the log, and words by which a person searches
    "Consumer started, listening for new events",
    "Received 1 record(s) from Kinesis",
    "Processing event: tenant=tenant-123, metric=api_calls, value=10",
    "Successfully updated DynamoDB: pk=TENANT#tenant-123, sk=METRIC#api_calls",
    "Access Denied",
    "Stream not found",
    "Table not found",
]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def guide() -> str:
    return text_of(GUIDE)


def blocks(text: str) -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def code_of(text: str) -> Iterator[str]:
    """What a page shows as code: its fenced blocks, its indented blocks, and what stands between back quotes."""
    yield from blocks(text)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"^ {4}.+", prose, re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", prose)


def commands(text: str) -> list[str]:
    """Each command of the fenced blocks on one line."""
    joined = [re.sub(r"\\\n\s*", "", block) for block in blocks(text)]
    found: list[str] = []
    for block in joined:
        rest = ""
        for line in block.splitlines():
            rest = f"{rest}\n{line}" if rest else line
            try:
                shlex.split(rest)
            except ValueError:  # a quote is still open
                continue
            found.append(rest)
            rest = ""
        assert not rest, rest
    return [command for command in found if command.strip()]


def squeezed(text: str) -> str:
    """`text` without the breaks of long commands, and without white space where JSON does not mind it."""
    text = re.sub(r"\s+", " ", text.replace("\\\n", " "))
    return re.sub(r"\s*([{}])\s*", r"\1", text)


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def identity(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ── All pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", text_of(linked), re.MULTILINE)
            assert fragment in map(slug, headings), target


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_environment_variables_exist(page: Path) -> None:
    asked: set[str] = set()

    class Recording(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return default

    Settings.from_environment(Recording())
    named = set(re.findall(r"(?<![\w-])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w|])", text_of(page)))
    assert named - NO_VARIABLES <= asked | VARIABLES_OF_OTHERS


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_metering_commands_exist(page: Path) -> None:
    for code in code_of(text_of(page)):
        for command in re.findall(r"(?<![\w-])metering ([a-z][a-z-]*)", code):
            assert command in command_group.commands, code


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for code in code_of(text_of(page)):
        for target in re.findall(r"(?:^|[\s`])make (?:[A-Z]+=\S+ )*([a-z][a-z-]*)", code):
            assert target in targets, code


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_paths_of_the_services_exist(page: Path) -> None:
    settings = Settings.from_environment({})
    maps = [
        collector_app(MemoryStream(), settings).url_map.bind(""),
        billing_app(MemoryTables(), settings).url_map.bind(""),
    ]
    for code in code_of(text_of(page)):
        for path in re.findall(
            r"(?<![\w.])(?:localhost:\d+|127\.0\.0\.1:808\d)?(/v1/[^\s`'\"?]*|/healthz|/readyz)", code
        ):
            concrete = re.sub(r"\{\w+\}|<\w+>|…", "x", path).rstrip("/.,;:")
            assert any(_known(urls, concrete) for urls in maps), code


def _known(urls: Any, path: str) -> bool:
    try:
        urls.match(path)
    except MethodNotAllowed:
        return True
    except NotFound:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_compose_commands_name_services_that_exist(page: Path) -> None:
    for code in code_of(text_of(page)):
        for verb, rest in re.findall(r"docker compose .*?docker-compose\.aws\.yml (logs|exec|run|up)([^\n|]*)", code):
            named = [word for word in rest.split() if not word.startswith("-") and word != "#"]
            if named:
                assert named[0] in SERVICES, (verb, code)


# ── The troubleshooting guide ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shown", WHAT_THE_OLD_GUIDE_SHOWS, ids=lambda shown: shown[:60])
def test_what_the_old_guide_shows_is_in_the_new_one(shown: str) -> None:
    assert squeezed(shown) in squeezed(guide())


def test_a_command_that_is_shown_can_be_typed_as_it_stands() -> None:
    shown = {squeezed(command) for command in commands(guide())}
    for command in WHAT_THE_OLD_GUIDE_SHOWS:
        if command.startswith(("docker ", "aws ", "curl ")):
            assert squeezed(command) in shown


def test_every_command_for_the_containers_has_its_local_counterpart() -> None:
    marked = re.findall(r"^<!-- run: local -->\n```bash\n(.*?)^```", guide(), re.MULTILINE | re.DOTALL)
    assert guide().count("<!-- run: local -->") == len(marked) > 5
    local = squeezed("\n".join(marked))
    endpoints = {"kinesis": "http://127.0.0.1:4567", "dynamodb": "http://127.0.0.1:8000"}
    for command in commands(guide()):
        words = command.split()
        if words[0] == "aws" and words[1] in endpoints:
            with_endpoint = (
                command if "--endpoint-url" in command else f"{command.strip()} --endpoint-url {endpoints[words[1]]}"
            )
            assert squeezed(with_endpoint) in local, command
    for block in marked:
        for command in commands(f"```bash\n{block}```\n"):
            assert "docker" not in command
            if command.startswith("aws "):
                assert f"--endpoint-url {endpoints[command.split()[1]]}" in command, command


def test_aws_commands_are_ones_that_aws_has() -> None:
    session = botocore.session.get_session()
    seen = 0
    for command in commands(guide()):
        words = shlex.split(command)
        if words[0] != "aws":
            continue
        model = session.get_service_model(words[1])
        operations = {xform_name(name, "-"): name for name in model.operation_names}
        assert words[2] in operations, command
        members = model.operation_model(operations[words[2]]).input_shape.members
        parameters = {"--" + xform_name(name, "-") for name in members} | {"--region", "--endpoint-url"}
        assert {word for word in words[3:] if word.startswith("--")} <= parameters, command
        seen += 1
    assert seen > 10


def test_events_that_the_guide_sends_are_accepted() -> None:
    sent = [shlex.split(command) for command in commands(guide()) if command.startswith("curl -X POST")]
    assert len(sent) == 2
    for words in sent:
        parse_event(decode_json(words[words.index("-d") + 1].encode()), now=datetime.now(UTC))


def test_log_lines_are_ones_that_the_services_write() -> None:
    written = [
        re.compile(re.sub(r"%(?:\\\.\d)?[sdf]", ".+", re.escape(constant)))
        for folder in ("consumer", "collector")
        for module in sorted((ROOT / folder).glob("*.py"))
        for node in ast.walk(ast.parse(text_of(module)))
        if isinstance(node, ast.Constant) and isinstance(constant := node.value, str) and len(constant) > 5
    ]
    table = guide().split("| `message` | it means |")[1].split("\n\n")[0]
    lines = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(lines) >= 8
    lines += re.findall(r"`((?:Received|Processing event|Successfully updated|Published)[^`]* [^`]*=?[^`]*)`", guide())
    for line in lines:
        if line != "Successfully updated DynamoDB":  # the name of a line, in prose
            assert any(pattern.fullmatch(line) for pattern in written), line


def test_tables_of_the_guide_are_those_that_set_up_makes() -> None:
    made = {table.name for table in tables(Settings.from_environment({}))}
    assert made <= set(re.findall(r"`([\w-]+)`", guide()))
    named = set(re.findall(r"\busage-[\w-]+", guide()))
    assert named <= made | SERVICES | {"usage-events", "usage-metering-2"}


def _translated(errors: Any, name: str, cause: Exception) -> str:
    with pytest.raises(MeteringError) as caught, errors(name):
        raise cause
    return str(caught.value)


def _client_error(code: str, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "why"}}, operation)


def test_error_texts_are_those_that_the_code_prints() -> None:
    with pytest.raises(MeteringError) as unknown:
        refuse_unknown(["maxrecords"], "KCL_PROPERTIES")
    with pytest.raises(InvalidSettingError) as unusable:
        Settings.from_environment({"KINESIS_STREAM": "usage events"})
    printed = [
        str(unknown.value),
        str(unusable.value),
        _translated(stream_errors, "usage-events", NoCredentialsError()),
        _translated(store_errors, "usage-aggregator", _client_error("AccessDeniedException", "UpdateItem")),
        _translated(
            stream_errors, "usage-events", _client_error("ProvisionedThroughputExceededException", "PutRecords")
        ),
        _translated(store_errors, "usage-aggregator", EndpointConnectionError(endpoint_url="http://x")),
        str(MissingResourceError("stream", "usage-events")),
        str(MissingResourceError("table", "usage-aggregator")),
    ]
    table = guide().split("| the words | the cause | the cure |")[1].split("\n\n")[0]
    shown = [words.partition("…")[0].strip() for words in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)]
    for text in printed:
        assert any(text.startswith(words) for words in shown if len(words) > 20), text
    # The rest of the table: each shows some words that stand in the code, with values in between.
    words_in_code = {
        fragment
        for folder in ("consumer", "operations", "metering")
        for module in (ROOT / folder).glob("*.py")
        for node in ast.walk(ast.parse(text_of(module)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for fragment in re.split(r"%s|%d|%\.\df", node.value)
        if len(fragment) > 15
    }
    for words in shown:
        if words not in SAID_BY_THE_KCL:
            assert any(fragment in words or text.startswith(words) for fragment in words_in_code for text in printed), (
                words
            )


def test_permissions_are_actions_that_aws_has() -> None:
    session = botocore.session.get_session()
    for service, action in set(re.findall(r"\b(kinesis|dynamodb|cloudwatch|kms):([A-Z]\w+)", guide())):
        assert action in {*session.get_service_model(service).operation_names, "PartiQLInsert"}, action


TRANSACTIONS = {"TransactWriteItems": {"PutItem", "UpdateItem", "DeleteItem"}, "TransactGetItems": {"GetItem"}}


def test_permissions_cover_every_call_that_the_code_makes() -> None:
    allowed = {action for _, action in re.findall(r"`(kinesis|dynamodb):(\w+)`", guide())}
    if "PartiQLInsert" in allowed:  # permissions are given for the statement, not for the call that carries it
        allowed.add("BatchExecuteStatement")
    # The same with a transaction: for what its parts do.
    allowed |= {of for of, parts in TRANSACTIONS.items() if parts <= allowed}
    session = botocore.session.get_session()
    names = {
        xform_name(operation): operation
        for service in ("kinesis", "dynamodb")
        for operation in session.get_service_model(service).operation_names
    }
    called = {
        names[node.func.attr]
        for module in [*(ROOT / "metering").glob("*.py"), *(ROOT / "operations").glob("*.py")]
        for node in ast.walk(ast.parse(text_of(module)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names
    }
    assert {"PutRecords", "UpdateItem", "CreateTable"} <= called
    assert called <= allowed


# ── Decisions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_decision_is_in_the_index_and_keeps_to_the_template() -> None:
    folder = ROOT / "docs" / "decisions"
    index = text_of(folder / "README.md")
    headings = re.findall(r"^## .+$", text_of(folder / "0000-template.md"), re.MULTILINE)
    pages = sorted(folder.glob("[0-9][0-9][0-9][0-9]-*.md"))
    numbers = [page.name[:4] for page in pages]
    assert len(set(numbers)) == len(numbers)
    for page in pages:
        if page.name == "0000-template.md":
            continue
        title = re.match(r"# (\d{4}): (.+)\n\nStatus: (\w+)", text_of(page))
        assert title, page.name
        assert title[1] == page.name[:4]
        assert f"| [{title[1]}]({page.name}) | {title[2]} | {title[3]}" in index
        assert re.findall(r"^## .+$", text_of(page), re.MULTILINE) == headings, page.name
