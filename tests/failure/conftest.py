# SPDX-License-Identifier: Apache-2.0
"""The fixtures of tests/launch, which these tests share."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "pmrun_tests_launch_fixtures", Path(__file__).resolve().parents[1] / "launch" / "conftest.py"
)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
launch = _module.launch
launched = _module.launched
