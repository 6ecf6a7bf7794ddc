# SPDX-License-Identifier: Apache-2.0
"""The operations as functions on the world show the parameters of the methods behind them."""

from __future__ import annotations

import inspect
import types

import pytest

from pmrun import operations
from pmrun.communicator import Communicator

OPERATIONS = [name for name, value in vars(operations).items() if isinstance(value, types.BuiltinFunctionType)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_parameters_are_the_methods(name: str) -> None:
    _, *parameters = inspect.signature(getattr(Communicator, name)).parameters.values()
    plain = inspect.Signature([one.replace(annotation=one.empty) for one in parameters])
    assert inspect.signature(getattr(operations, name)) == plain
