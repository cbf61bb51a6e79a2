"""boto3 clients, and what their errors mean to us.

Clients never retry on their own beyond botocore's standard mode with few attempts: every write that we send is safe
to send twice, and the caller's deadline decides how long to go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from metering.dynamodb_answers import DynamoAnswerParserFactory
from metering.errors import (
    AccessRefusedError,
    MissingResourceError,
    ServiceUnavailableError,
    StoreUnavailableError,
    StreamUnavailableError,
)
from metering.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_kinesis import KinesisClient

_ACCESS_CODES = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_TRANSIENT_CODES = frozenset(
    {
        "InternalFailure",
        "InternalServerError",
        "ItemCollectionSizeLimitExceededException",
        "KMSThrottlingException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "ReplicatedWriteConflictException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ResourceInUseException",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TransactionConflictException",  # of any write to an item that a transaction is about to write
        "TransactionInProgressException",
    }
)
TRANSIENT_PARTS = frozenset(
    {
        "InternalServerError",
        "ItemCollectionSizeLimitExceeded",
        "ProvisionedThroughputExceeded",
        "RequestLimitExceeded",
        "ThrottlingError",
        "TransactionConflict",
    }
)
"""Codes of a part of a call that may go through later: of a PartiQL statement, or of a transaction's item (DynamoDB API
reference, BatchStatementError and TransactionCanceledException)."""


def kinesis_client(settings: Settings, *, connections_max: int = 10) -> KinesisClient:
    """Return a Kinesis client for the settings' region and endpoint; thread-safe."""
    return boto3.session.Session(region_name=settings.region).client(
        "kinesis", endpoint_url=settings.kinesis_endpoint, config=_config(connections_max)
    )


def dynamodb_client(settings: Settings, *, connections_max: int = 10) -> DynamoDBClient:
    """Return a DynamoDB client for the settings' region and endpoint; thread-safe."""
    core = botocore.session.get_session()
    core.register_component("response_parser_factory", DynamoAnswerParserFactory())
    return boto3.session.Session(region_name=settings.region, botocore_session=core).client(
        "dynamodb", endpoint_url=settings.dynamodb_endpoint, config=_config(connections_max)
    )


def _config(connections_max: int) -> Config:
    return Config(
        connect_timeout=2,
        read_timeout=5,
        max_pool_connections=connections_max,
        retries={"mode": "standard", "total_max_attempts": 2},
        tcp_keepalive=True,
    )


@contextmanager
def store_errors(table: str) -> Iterator[None]:
    """Translate botocore's errors of DynamoDB calls: see _translated."""
    with _translated(StoreUnavailableError, "table", table):
        yield


@contextmanager
def stream_errors(stream: str) -> Iterator[None]:
    """Translate botocore's errors of Kinesis calls: see _translated."""
    with _translated(StreamUnavailableError, "stream", stream):
        yield


@contextmanager
def _translated(unavailable: type[ServiceUnavailableError], kind: str, name: str) -> Iterator[None]:
    """Raise one of our errors `from` botocore's: missing, refused, or away; what is not understood goes on as it is."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        raise AccessRefusedError(f"no AWS credentials for the {kind} {name!r}: {error}") from error
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "ResourceNotFoundException":
            raise MissingResourceError(kind, name) from error
        if code in _ACCESS_CODES or status in {401, 403}:
            raise AccessRefusedError(f"AWS refused access to the {kind} {name!r}: {error}") from error
        if (
            code in _TRANSIENT_CODES
            or status >= 500
            or any(part in TRANSIENT_PARTS for part, _ in cancellation_reasons(error))
        ):
            raise unavailable(f"the {kind} {name!r} is not available: {error}") from error
        raise
    except ParamValidationError:
        raise  # a bug of ours: trying again would hide it
    except BotoCoreError as error:
        # Connection, timeout, proxy and protocol errors: nothing of the request's own is wrong.
        raise unavailable(f"the {kind} {name!r} can't be reached: {error}") from error


def error_code(error: ClientError) -> str:
    """Return the service's own error code."""
    return str(error.response.get("Error", {}).get("Code", ""))


def cancellation_reasons(error: ClientError) -> list[tuple[str, dict[str, Any]]]:
    """Return why a transaction was cancelled: a code for each of its items, and what error_item says of it.

    The code is `None`, the text, for an item that was not to blame.
    """
    response: Mapping[str, Any] = error.response
    return [(str(each.get("Code")), each.get("Item") or {}) for each in response.get("CancellationReasons") or ()]


def error_item(error: ClientError) -> dict[str, Any]:
    """Return the item that came with a failed condition (ReturnValuesOnConditionCheckFailure), empty when none did."""
    response: Mapping[str, Any] = error.response
    return dict(response.get("Item") or {})
