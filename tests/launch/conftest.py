# SPDX-License-Identifier: Apache-2.0
"""The `launch` fixture; its code is in launched.py beside this file, shared with tests/failure."""

import importlib.util
import sys
from pathlib import Path

import pytest


def _load():
    name = "pmrun_tests_launched"
    if name not in sys.modules:
        path = Path(__file__).resolve().with_name("launched.py")
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def launch():
    """Start a job: `launch([sys.executable, "-c", code], world_size, **job_fields)`."""
    yield from _load().fixtures()


@pytest.fixture
def launched():
    """The helpers of launched.py."""
    return _load()
