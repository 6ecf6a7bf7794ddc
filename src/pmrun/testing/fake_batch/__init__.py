# SPDX-License-Identifier: Apache-2.0
"""AWS Batch on this machine, for tests: multi-node parallel jobs by their true contract, driven by boto3.

    from pmrun.testing.fake_batch import FakeBatch

    with FakeBatch(seed=1) as aws:
        batch = aws.client("batch")            # or any boto3 with aws.environment()
        batch.register_job_definition(...)
        job = batch.submit_job(jobName="train", jobQueue="fake-queue", jobDefinition="train")["jobId"]
        aws.wait(job)

Each node is a process with an address of its own, Batch's variables and a log stream; docs/fake-batch.md has what is
true to AWS and what is not. Invariant: nothing is left when the fake is closed, nor when its process is killed.
"""

from __future__ import annotations

from pmrun.testing.fake_batch.fake import FakeBatch
from pmrun.testing.fake_batch.lifecycle import Delays

__all__ = ["Delays", "FakeBatch"]
