# SPDX-License-Identifier: Apache-2.0
"""What `s3://bucket/prefix` names, for checkpoints and for packages of code.

Invariant: no request is sent, and boto3 is loaded only here, when an address is opened.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from pmrun.errors import UsageError


def split_url(url: str) -> tuple[Any, str, str]:
    """boto3, the bucket, and the prefix of its keys, which ends with a slash unless it is empty.

    Raises
    ------
    UsageError
        It is no such address, or boto3 is not installed.
    """
    found = re.fullmatch(r"(?i:s3)://([A-Za-z0-9._-]+)(?:/(.*))?", url)
    if found is None:
        raise UsageError(f"{url}: write s3://bucket/prefix")
    try:
        boto3 = importlib.import_module("boto3")
    except ImportError:
        raise UsageError(f"{url}: boto3 is not installed; run: pip install 'pmrun[s3]'") from None
    prefix = (found[2] or "").strip("/")
    return boto3, found[1], f"{prefix}/" if prefix else ""
