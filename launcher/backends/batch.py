# SPDX-License-Identifier: Apache-2.0
"""Runs a job on AWS Batch, as a multi-node parallel job: `pmrun -n 32 --on batch --nodes 4 --image IMAGE train.py`.

Invariant: boto3 is loaded when AWS is first asked something.
"""

from __future__ import annotations

import importlib
from typing import Any

from pmrun.errors import UsageError
from pmrun.launcher.aws_batch.client import BatchClient
from pmrun.launcher.submission.backend import EngineBackend
from pmrun.launcher.submission.contract import Client


class Backend(EngineBackend):
    """AWS, with the credentials and the region that boto3 finds."""

    def client(self) -> Client:
        return BatchClient(_connect)


def _connect(service: str, region: str | None) -> Any:
    """boto3's client of a service. It does not try again: pmrun does, by a budget of its own."""
    try:
        session = importlib.import_module("boto3").session.Session()
    except ImportError:
        raise UsageError("AWS Batch needs boto3, which is not installed; run: pip install 'pmrun[batch]'") from None
    config = importlib.import_module("botocore.config").Config(
        retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=30
    )
    return session.client(service, region_name=region, config=config)
