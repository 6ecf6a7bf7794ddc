# SPDX-License-Identifier: Apache-2.0
"""The version of pmrun that this code is. Invariant: the same as in pyproject.toml (tests/tidy compares them)."""

from __future__ import annotations

RELEASE = "0.1.0"
