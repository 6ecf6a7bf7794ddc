# SPDX-License-Identifier: Apache-2.0
"""Where packages wait for their nodes: a bucket, a directory, a ConfigMap."""

from __future__ import annotations

import base64
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmrun.errors import LaunchError, UsageError
from pmrun.launcher.code_package import config_map
from pmrun.launcher.code_package.archive import SUFFIX, Package, pack
from pmrun.launcher.code_package.places import open_place
from pmrun.launcher.code_package.unpack import unpacked


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Package]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print('here')\n")
    with pack(str(tmp_path / "code")) as made:
        yield made


# ---- S3 ---------------------------------------------------------------------------------------------------


def test_a_package_goes_by_a_bucket_once(s3: Any, package: Package) -> None:
    url = f"s3://runs/{uuid.uuid4().hex}/of-mine"
    place = open_place(url + "/")
    address = place.address(package.digest)
    assert address == f"{url}/{package.digest}{SUFFIX}"
    assert [place.keep(package), place.keep(package)] == [True, False]
    with unpacked(address) as folder:
        assert os.listdir(folder) == ["train.py"]


def test_a_bucket_itself(s3: Any, package: Package) -> None:
    place = open_place("s3://runs")
    assert place.address("0" * 64) == f"s3://runs/{'0' * 64}{SUFFIX}"
    place.keep(package)
    assert s3.head_object(Bucket="runs", Key=f"{package.digest}{SUFFIX}")["ContentLength"] == package.packed_bytes


def test_buckets_and_packages_that_are_not_there(s3: Any, package: Package) -> None:
    with pytest.raises(LaunchError) as caught:
        open_place("s3://none").keep(package)
    assert str(caught.value) == (
        f"cannot write s3://none/{package.digest}{SUFFIX}: there is no such bucket; create it, or name another by --code-store"
    )
    address = f"s3://runs/{'0' * 64}{SUFFIX}"
    with pytest.raises(LaunchError) as caught, unpacked(address):
        pass
    assert str(caught.value) == f"cannot read {address}: it is not there any more; submit the job again"


def test_a_bucket_that_is_not_ours(s3: Any, package: Package) -> None:
    """Writing is refused by the bucket's policy, looking by none: moto knows rights only so far."""
    name = f"locked-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    s3.put_bucket_policy(
        Bucket=name,
        Policy='{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"s3:*","Resource":"*"}]}',
    )
    with pytest.raises(LaunchError, match=r"no right to; whoever submits needs s3:GetObject and s3:PutObject"):
        open_place(f"s3://{name}").keep(package)


def test_nobody_signed_in(s3: Any, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # which remembers who signed in before
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(LaunchError, match=r"there are no credentials; sign in \(aws configure"):
        open_place("s3://runs").keep(package)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(LaunchError, match=r"Could not connect to the endpoint URL"):
        open_place("s3://runs").keep(package)


def test_what_is_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"s3:///x: write s3://bucket/prefix"):
        open_place("s3:///x")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match=r"run: pip install 'pmrun\[s3\]'"):
        open_place("s3://runs")


# ---- a directory ------------------------------------------------------------------------------------------


def test_a_package_goes_by_a_directory_once(tmp_path: Path, package: Package) -> None:
    place = open_place(f"{tmp_path}/")
    assert [place.keep(package), place.keep(package)] == [True, False]
    assert sorted(os.listdir(tmp_path)) == sorted(["code", f"{package.digest}{SUFFIX}"])
    with unpacked(place.address(package.digest)) as folder:
        assert os.listdir(folder) == ["train.py"]


def test_a_directory_that_is_not_there(package: Package) -> None:
    with pytest.raises(LaunchError, match=r"cannot write the code package to /nonexistent/\w+\.tar\.gz: No such file"):
        open_place("/nonexistent").keep(package)


# ---- a ConfigMap ------------------------------------------------------------------------------------------


def test_a_config_map(tmp_path: Path, package: Package) -> None:
    made = config_map.manifest(package)
    assert made["metadata"] == {"name": f"pmrun-code-{package.digest[:32]}"} and made["immutable"] is True
    ((name, data),) = made["binaryData"].items()
    assert config_map.address(package.digest) == f"{config_map.FOLDER}/{name}"
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / name).write_bytes(base64.b64decode(data))
    with unpacked(f"{tmp_path}/mounted/{name}") as folder:
        assert os.listdir(folder) == ["train.py"]


def test_a_config_map_has_a_bound(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(config_map.BYTES_MAX - 1024))
    with pack(str(tmp_path)) as fits:
        assert len(base64.b64decode(*config_map.manifest(fits)["binaryData"].values())) <= 1 << 20
    (tmp_path / "weights").write_bytes(os.urandom(config_map.BYTES_MAX))
    with (
        pack(str(tmp_path)) as package,
        pytest.raises(UsageError, match=r"largest: weights \(1 MiB\); give --code-store"),
    ):
        config_map.manifest(package)
