# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in S3, over HTTP to a server that plays it."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

import pmrun as pm

BUCKET = "runs"


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


def keys(s3: Any, prefix: str) -> list[str]:
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
    return sorted(item["Key"].removeprefix(f"{prefix}/") for item in found)


def of_version(number: int, step: int) -> list[str]:
    return [f"{number:06d}-step-{step}/{name}" for name in ("claim", "manifest.json", "shard-00000.safetensors")]


def test_the_last_one_is_kept_and_loads(s3: Any, prefix: str) -> None:
    with pm.Checkpoint(f"s3://{BUCKET}/{prefix}/", keep=1) as checkpoint:
        assert checkpoint.load("mine") == (0, "mine")
        state = {"w": np.arange(9 << 18, dtype=np.uint32), "n": 0}  # 9 MiB: two parts
        for step in (1, 2):
            state["n"] = step
            checkpoint.isave(step, state)
        checkpoint.wait()
        step, loaded = checkpoint.load()
        assert step == loaded["n"] == 2 and (loaded["w"] == state["w"]).all()
    assert keys(s3, prefix) == of_version(2, 2)


def test_damage_and_leftovers(s3: Any, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pm.Checkpoint(f"s3://{BUCKET}/{prefix}") as checkpoint:
        checkpoint.save(1, np.ones(3))
        checkpoint.save(2, np.ones(3))
        shard = f"{prefix}/000002-step-2/shard-00000.safetensors"
        s3.put_object(Bucket=BUCKET, Key=shard, Body=b"none")
        assert checkpoint.load().step == 1
        assert f"damaged: s3://{BUCKET}/{shard}: " in capsys.readouterr().err
        s3.delete_object(Bucket=BUCKET, Key=shard)
        assert checkpoint.load().step == 1
        assert f"{shard}: it is missing; trying the one before" in capsys.readouterr().err
    died = f"{prefix}/000003-step-3"
    s3.put_object(Bucket=BUCKET, Key=f"{died}/claim", Body=b"")
    s3.create_multipart_upload(Bucket=BUCKET, Key=f"{died}/shard-00000.safetensors")
    with pm.Checkpoint(f"s3://{BUCKET}/{prefix}", keep=1) as checkpoint:
        checkpoint.save(3, 3)
    assert keys(s3, prefix) == of_version(4, 3)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)


def test_another_job_there_is_noticed(s3: Any, prefix: str) -> None:
    with pm.Checkpoint(f"s3://{BUCKET}/{prefix}") as mine, pm.Checkpoint(f"s3://{BUCKET}/{prefix}") as other:
        mine.save(1, 1)
        other.save(2, 2)
        with pytest.raises(pm.CheckpointError, match=r"another job saves to s3://.* \(it has made 000002-step-2\)"):
            mine.save(2, 2)


def test_what_s3_refuses_is_told_in_a_line(s3: Any, prefix: str) -> None:
    with pm.Checkpoint(f"s3://no-such-bucket/{prefix}") as checkpoint:
        for use, told in (
            (lambda: checkpoint.save(1, 1), "cannot save step 1 to s3://no-such-bucket/"),
            (checkpoint.load, "cannot load from s3://no-such-bucket/"),
            (checkpoint.steps, "cannot read s3://no-such-bucket/"),
        ):
            with pytest.raises(pm.CheckpointError) as caught:
                use()
            assert str(caught.value).startswith(told) and "NoSuchBucket" in str(caught.value)
            assert "\n" not in str(caught.value)
    with pytest.raises(pm.UsageError, match="write s3://bucket/prefix"):
        pm.Checkpoint("s3:///x")
