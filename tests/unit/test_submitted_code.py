# SPDX-License-Identifier: Apache-2.0
"""`--code` of a submitted job: what its request says, what its nodes are told, what is sent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pmrun.errors import UsageError
from pmrun.launcher.code_package import config_map
from pmrun.launcher.code_package.archive import SUFFIX
from pmrun.launcher.job import Job, Nodes, Submission
from pmrun.launcher.option import Values
from pmrun.launcher.submission import choices
from pmrun.launcher.submission.code import code_place, describe_code, send_code
from pmrun.launcher.submission.node_command import node_words
from pmrun.version import RELEASE


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / "jobs").mkdir(parents=True)
    (root / "jobs" / "train.py").write_text("print('here')\n")
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(root)
    return root


def submitted(cwd: str | None = None, *, code: str | None = ".", **named: str) -> Job:
    return Job(("train.py",), 4, "toy", cwd, nodes=Nodes(count=2), submission=Submission(code=code, **named))


def test_a_request_names_the_code_and_nodes_are_told(project: Path) -> None:
    store = project.parent / "store"
    job = submitted("jobs", code_store=str(store))
    place = code_place(job)
    assert place is not None
    code = describe_code(job, place.address)
    assert code == json.loads(json.dumps(code))
    assert not os.listdir(store)
    address = f"{store}/{code['sha256']}{SUFFIX}"
    assert node_words(job, code) == [
        "pmrun", "agent", "--submitted-by", RELEASE, "-n", "4", "--nnodes", "2", "--code", address, "--cwd", "jobs",
        "train.py",
    ]  # fmt: skip
    assert [send_code(code, place), send_code(code, place)] == [True, False]
    assert os.listdir(store) == [os.path.basename(address)]
    (project / "jobs" / "train.py").write_text("print('there')\n")
    with pytest.raises(UsageError, match=rf"--code {project}: a file in it was changed just now; submit again"):
        send_code(code, place)


@pytest.mark.parametrize(
    ("here", "code", "cwd", "expected"),
    [
        (".", ".", None, None), ("jobs", "..", None, "jobs"), (".", "jobs", None, None), ("jobs", "..", "../jobs", "jobs"),
        (".", ".", "/data", "/data"), ("jobs", ".", "x", "x"), (".", "jobs", "x", "x"), ("jobs", "..", "..", None),
    ],
)  # fmt: skip
def test_nodes_stand_where_the_user_stands(
    project: Path, monkeypatch: pytest.MonkeyPatch, here: str, code: str, cwd: str | None, expected: str | None
) -> None:
    monkeypatch.chdir(here)
    told = describe_code(submitted(cwd, code=code), config_map.address)
    assert told is not None and told["cwd"] == expected


def test_stock_images(project: Path) -> None:
    job = submitted(pip=RELEASE)
    code = describe_code(job, lambda digest: f"s3://bucket/{digest}{SUFFIX}")
    assert code is not None
    words = node_words(job, code)
    assert words[0] == "sh" and words[5:8] == [RELEASE, f"pmrun[s3]=={RELEASE}", ""]
    assert words[8:11] == ["agent", "--submitted-by", RELEASE] and words[-3:] == ["--code", code["address"], "train.py"]


def test_without_code(project: Path) -> None:
    assert describe_code(submitted(code=None), config_map.address) is None
    assert code_place(submitted()) is None
    assert node_words(submitted(), None)[4:] == ["-n", "4", "--nnodes", "2", "train.py"]


def test_the_options() -> None:
    values = Values()
    assert values.get(choices.CODE) is None and values.get(choices.CODE_LIMIT) == 64
    for option, text, value in (
        (choices.CODE, ".", "."), (choices.CODE, "none", None), (choices.CODE_LIMIT, "2G", 2048), (choices.PIP, "/w", "/w"),
    ):  # fmt: skip
        values.put(option, text)
        assert values.get(option) == value
    with pytest.raises(ValueError, match="give this release"):
        values.put(choices.PIP, "wheels")
