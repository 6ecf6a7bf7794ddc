# SPDX-License-Identifier: Apache-2.0
"""The kept report, and `pmrun explain-last`."""

import os
import stat

import pytest

from pmrun.launcher import cli, last_failure


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_the_last_report_is_shown_again(state, capfd):
    last_failure.keep("pmrun: one\n", ["python", "a b.py"], "exit code 1")
    last_failure.keep("pmrun: two\n  more\n", ["python", "train.py"], "exit code 79")
    assert cli.main(["explain-last"]) == 0
    first, *rest = capfd.readouterr().out.splitlines()
    assert first.endswith(f", in {os.getcwd()}, exit code 79:")
    assert rest == ["  python train.py", "pmrun: two", "  more"]


def test_only_its_owner_may_read_it(state):
    last_failure.keep("pmrun: x\n", ["python"], "exit code 1")
    assert os.listdir(state / "pmrun") == ["last-failure.txt"]
    assert stat.S_IMODE(os.stat(state / "pmrun").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(state / "pmrun" / "last-failure.txt").st_mode) == 0o600


def test_nothing_has_failed(capfd):
    assert cli.main(["explain-last"]) == 2
    assert capfd.readouterr().err == "pmrun: none of your jobs has failed here yet\n"


def test_where_nothing_can_be_kept_is_told_why(state, capfd):
    state.write_text("in the way")
    last_failure.keep("pmrun: x\n", ["python"], "exit code 1")
    assert cli.main(["explain-last"]) == 2
    assert f"no report was kept: {state} is not a directory" in capfd.readouterr().err


def test_a_relative_place_is_not_taken(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/someone")
    assert last_failure.folder() == "/home/someone/.local/state/pmrun"


def test_other_words(capfd):
    assert cli.main(["explain-last", "--help"]) == 0
    assert cli.main(["explain-last", "x"]) == 2
    assert cli.main(["explain_last"]) == 2, "a script's name"
    assert "explain_last" in capfd.readouterr().err
