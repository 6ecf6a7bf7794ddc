# SPDX-License-Identifier: Apache-2.0
"""What the fake's services refuse, by the names and HTTP statuses that boto3 knows."""

from __future__ import annotations


class Refused(Exception):
    """An answer that is an error.

    Attributes
    ----------
    code : str
        AWS's name for it: `response["Error"]["Code"]` of boto3's ClientError.
    status : int
        Of HTTP.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def bad_request(message: str) -> Refused:
    """Batch's error for whatever is wrong with a request."""
    return Refused("ClientException", message)
