# SPDX-License-Identifier: Apache-2.0
"""Backends are found by name."""

import pytest

from pmrun.errors import UsageError
from pmrun.launcher import backends


def test_names_leave_out_what_is_not_a_backend():
    assert "local" in backends.names()
    assert not [name for name in backends.names() if name.startswith("_")]


def test_load():
    assert hasattr(backends.load("local").Backend, "run")


@pytest.mark.parametrize("name", ["nosuch", "_base", "", "a.b", "../local"])
def test_unknown(name):
    with pytest.raises(UsageError, match=r"unknown backend .* choose one of .*local"):
        backends.load(name)
