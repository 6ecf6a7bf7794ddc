# SPDX-License-Identifier: Apache-2.0
"""boto3's exceptions as pmrun's: what to try again, what wants new credentials, what is refused. One line each."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, Final

from pmrun.errors import EngineError
from pmrun.launcher.submission.contract import NotSignedIn, Transient

_SIGN_IN: Final = frozenset(
    {
        "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure",
        "InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired", "MissingAuthenticationToken",
    }
)  # fmt: skip
_SLOW_DOWN: Final = frozenset({"Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"})
_DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})


class Denied(EngineError):
    """The user has not the right to ask this."""


class Refused(EngineError):
    """AWS refuses a request.

    Attributes
    ----------
    code : str
        AWS's name for the reason.
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Errors of one call; `what` is what it was to do: "ask AWS Batch for the job"."""
    exceptions: Any = importlib.import_module("botocore.exceptions")
    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError):
        raise NotSignedIn(
            f"cannot {what}: there are no AWS credentials; run: aws configure, or: aws sso login"
        ) from None
    except (exceptions.SSOError, exceptions.TokenRetrievalError) as error:
        raise NotSignedIn(f"cannot {what}: {_line(error)}; run: aws sso login") from None
    except exceptions.NoRegionError:
        raise EngineError(f"cannot {what}: no region is configured; say --with region=..., or set AWS_REGION") from None
    except exceptions.ClientError as error:
        raise _of_answer(what, error) from None
    except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
        raise Transient(f"cannot {what}: {_line(error)}") from None
    except exceptions.BotoCoreError as error:
        raise EngineError(f"cannot {what}: {_line(error)}") from None


def _of_answer(what: str, error: Any) -> EngineError:
    answer = error.response
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    message = " ".join(str(answer.get("Error", {}).get("Message", "")).split())
    text = f"cannot {what}: {message or code}"
    if code in _SIGN_IN:
        return NotSignedIn(f"{text}; renew the credentials: aws sso login")
    if code in _SLOW_DOWN or status == 429 or status >= 500:
        return Transient(text)
    if code in _DENIED or status == 403:
        return Denied(text)
    return Refused(text, code)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
