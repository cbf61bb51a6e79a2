"""A quicker way to read DynamoDB's answers to Query; all else is botocore's: signing, retries, errors, other answers.

botocore walks through an answer along the shapes of its model, value by value, which for a year of hourly rows takes
longer than DynamoDB does. But DynamoDB's JSON is what boto3 gives already, blobs apart:

    {"Items": [{"sk": {"S": "…"}, "usage": {"N": "10"}}, …], "Count": 1}

so one decoding is enough. Wherever that might not hold, botocore's own way is taken.
"""

from __future__ import annotations

from typing import Any

import msgspec
from botocore.parsers import JSONParser, ResponseParserFactory

_QUICK = "QueryOutput"
_BLOB = b'"B'
"""How the names of blobs and sets of blobs begin: `"B"`, `"BS"`. Also in a text, and then for nothing."""


class DynamoAnswerParser(JSONParser):
    """botocore's parser of the protocol `json`, quicker for Query."""

    def _handle_json_body(self, raw_body: bytes, shape: Any) -> Any:
        if shape.name == _QUICK and _BLOB not in raw_body:
            try:
                return msgspec.json.decode(raw_body, type=dict)
            except msgspec.MsgspecError:
                pass  # botocore's own way says what is wrong
        return super()._handle_json_body(raw_body, shape)  # type: ignore[misc]  # the stubs leave it out


class DynamoAnswerParserFactory(ResponseParserFactory):
    """Gives DynamoAnswerParser for the protocol that DynamoDB speaks."""

    def create_parser(self, protocol_name: str) -> Any:
        if protocol_name == "json":
            return DynamoAnswerParser()
        return super().create_parser(protocol_name)
