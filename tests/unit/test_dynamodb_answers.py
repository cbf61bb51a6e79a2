"""The quicker reading of DynamoDB's answers gives what botocore's own does, whatever the answer holds."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.parsers import JSONParser, ResponseParserError
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.aws import dynamodb_client
from metering.dynamodb_answers import DynamoAnswerParser
from metering.settings import Settings

text = st.text(max_size=8) | st.sampled_from(['"B"', "B", "BS", "\\", "\U0001f600", "null"])
blob = st.binary(max_size=6).map(lambda raw: base64.b64encode(raw).decode())
scalar = st.one_of(
    st.builds(lambda value: {"S": value}, text),
    st.builds(lambda value: {"N": str(value)}, st.decimals(allow_nan=False, allow_infinity=False)),
    st.builds(lambda value: {"BOOL": value}, st.booleans()),
    st.just({"NULL": True}),
    st.builds(lambda value: {"SS": value}, st.lists(text, max_size=3)),
    st.builds(lambda value: {"B": value}, blob),
    st.builds(lambda value: {"BS": value}, st.lists(blob, max_size=2)),
)
value = st.recursive(
    scalar,
    lambda inner: (
        st.builds(lambda each: {"L": each}, st.lists(inner, max_size=3))
        | st.builds(lambda each: {"M": each}, st.dictionaries(text, inner, max_size=3))
    ),
    max_leaves=6,
)
item = st.dictionaries(text, value, max_size=4)
ANSWERS = st.fixed_dictionaries(
    {"Items": st.lists(item, max_size=3), "Count": st.integers(0, 9), "ScannedCount": st.integers(0, 9)},
    optional={"LastEvaluatedKey": item},
)


@cache
def shape_of(operation: str) -> Any:
    return botocore.session.get_session().get_service_model("dynamodb").operation_model(operation).output_shape


def parsed(parser: JSONParser, body: bytes, operation: str = "Query", status: int = 200) -> Any:
    return parser.parse(
        {"body": body, "headers": {"x-amzn-requestid": "1"}, "status_code": status}, shape_of(operation)
    )


@settings(max_examples=60)
@given(ANSWERS, st.booleans())
def test_both_ways_give_the_same_of_any_answer(content: dict[str, Any], escaped: bool) -> None:  # noqa: FBT001
    body = json.dumps(content, ensure_ascii=escaped).encode()
    assert parsed(DynamoAnswerParser(), body) == parsed(JSONParser(), body)


def test_what_is_no_json_is_refused_as_before() -> None:
    for body in (b"", b"{", b"<html>", b"\xff", b'{"Items":[],"Count":"\xff"}', b"[]", b"null"):
        outcomes = []
        for parser in (DynamoAnswerParser(), JSONParser()):
            try:
                outcomes.append(parsed(parser, body))
            except (ResponseParserError, AttributeError, TypeError, UnicodeDecodeError) as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1], body


@pytest.mark.parametrize("status", [400, 500])
def test_errors_are_botocores(status: int) -> None:
    body = b'{"__type":"com.amazonaws.dynamodb.v20120810#ResourceNotFoundException","message":"no such table"}'
    found = parsed(DynamoAnswerParser(), body, status=status)
    assert found == parsed(JSONParser(), body, status=status)
    assert found["Error"]["Code"] == "ResourceNotFoundException"


def test_other_operations_are_read_by_their_shapes() -> None:
    body = b'{"Table":{"TableName":"a","CreationDateTime":1700000000.5}}'
    assert parsed(DynamoAnswerParser(), body, "DescribeTable") == parsed(JSONParser(), body, "DescribeTable")


def test_every_client_of_ours_reads_that_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client: Any = dynamodb_client(Settings.from_environment({}))
    assert isinstance(client._endpoint._response_parser_factory.create_parser("json"), DynamoAnswerParser)
    client.close()
