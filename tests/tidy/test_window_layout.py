# SPDX-License-Identifier: Apache-2.0
"""The agent (Python) and the ranks (C) agree on every number of the node's window.

A small C program prints what the compiler makes of window_layout.h; src/pmrun/window.py is held to it.
"""

from __future__ import annotations

import re
import struct
import subprocess

import pytest

import pmrun
from native_build import NATIVE, c_flags
from pmrun import window

NUMBERS = {
    "MAGIC": "PMR_WINDOW_MAGIC",
    "HEADER_BYTES": "PMR_WINDOW_HEADER_BYTES",
    "RANKS_MAX": "PMR_WINDOW_RANKS_MAX",
    "NODE_NAME_BYTES": "PMR_NODE_NAME_BYTES",
    "ERROR_TEXT_BYTES": "PMR_ERROR_TEXT_BYTES",
    "ABORT_NONE": "PMR_ABORT_NONE",
    "ABORT_RANK_FAILED": "PMR_ABORT_RANK_FAILED",
    "ABORT_MISMATCH": "PMR_ABORT_MISMATCH",
    "ABORT_STALLED": "PMR_ABORT_STALLED",
    "ABORT_STOPPED": "PMR_ABORT_STOPPED",
    "HEED_NONE": "PMR_HEED_NONE",
    "HEED_ASKS": "PMR_HEED_ASKS",
    "HEED_AGREED": "PMR_HEED_AGREED",
    "RANK_ATTACHED": "PMR_RANK_ATTACHED",
    "RANK_LEFT": "PMR_RANK_LEFT",
    "RANK_FAILED": "PMR_RANK_FAILED",
    "RECORDER_STRIDE": "PMR_RECORDER_STRIDE",
    "RECORDER_ENTRIES": "PMR_RECORDER_ENTRIES",
    "RECORDER_SITES": "PMR_RECORDER_SITES",
    "RECORDER_SITE_BYTES": "PMR_RECORDER_SITE_BYTES",
    "RECORDER_COMMS": "PMR_RECORDER_COMMS",
    "RECORD_BYTES": "sizeof(pmr_record)",
    "MEMBERSHIP_BYTES": "sizeof(pmr_membership)",
    "MODE_CALL": "PMR_RECORD_CALL",
    "MODE_STARTED": "PMR_RECORD_STARTED",
    "MODE_WAIT": "PMR_RECORD_WAIT",
    "RECORDER_HEAD_BYTES": "offsetof(pmr_recorder, record)",
    "ABORT_OFFSET": "offsetof(pmr_window_header, abort)",
    "DEPARTURES_OFFSET": "offsetof(pmr_window_header, departures)",
    "STOP_ASKED_OFFSET": "offsetof(pmr_window_header, stop_asked)",
    "HEED_OFFSET": "offsetof(pmr_window_header, heed)",
    "RANK_STATE_OFFSET": "offsetof(pmr_window_header, rank_state)",
}
# Each struct format of window.py against the fields that it reads, in order.
STRUCTS = {
    "_HEADER": ("pmr_window_header", "magic version local_world_size world_size first_rank cpus flags heap_bytes"),
    "_ABORT": ("pmr_window_abort", "claim state rank reserved node text"),
    "_RECORDER_HEAD": ("pmr_recorder", "count tick_hz base_ticks base_realtime_ns pid sites"),
    "_RECORD": (
        "pmr_record",
        "number bytes entered_ticks done_ticks seq comm site peer kind dtype op form mode",
    ),
    "_MEMBERSHIP": ("pmr_membership", "taken comm group size"),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Expression of C to its value."""
    wanted = list(NUMBERS.values())
    for struct_name, fields in STRUCTS.values():
        wanted += [f"offsetof({struct_name}, {field})" for field in fields.split()]
    wanted += constants("kind") + constants("form")
    prints = "\n".join(f'    printf("%llu\\n", (unsigned long long)({expression}));' for expression in wanted)
    folder = tmp_path_factory.mktemp("layout")
    source = folder / "layout.c"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include "core/window_layout.h"\n'
        f"int main(void)\n{{\n{prints}\n    return 0;\n}}\n"
    )
    subprocess.run(["cc", *c_flags(), f"-I{NATIVE}", str(source), "-o", str(folder / "layout")], check=True)
    out = subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout
    return dict(zip(wanted, map(int, out.split()), strict=True))


def constants(enum: str) -> list[str]:
    """Names of an enum of pmr.h, in the header's order."""
    header = (NATIVE / "include" / "pmr.h").read_text()
    body = re.search(rf"typedef enum pmr_{enum} \{{(.*?)\}} pmr_{enum};", header, re.DOTALL)
    assert body is not None
    return re.findall(r"PMR_\w+", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL))[:-1]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str, compiled: dict[str, int]) -> None:
    assert getattr(window, name) == compiled[NUMBERS[name]]


@pytest.mark.parametrize("name", STRUCTS)
def test_formats_read_each_field_where_it_is(name: str, compiled: dict[str, int]) -> None:
    struct_name, fields = STRUCTS[name]
    layout: struct.Struct = getattr(window, name)
    offset = 0
    parts = re.findall(r"\d*s|[A-Za-z]", layout.format.lstrip("<"))
    for field, part in zip(fields.split(), parts, strict=True):
        assert offset == compiled[f"offsetof({struct_name}, {field})"], field
        offset += struct.calcsize("<" + part)


def test_kinds_are_in_the_same_order(compiled: dict[str, int]) -> None:
    names = sorted(constants("kind"), key=compiled.__getitem__)
    assert tuple(name.removeprefix("PMR_").lower() for name in names) == window.KINDS


def test_forms_are_in_the_same_order_and_named_as_what_users_call(compiled: dict[str, int]) -> None:
    _, *names = sorted(constants("form"), key=compiled.__getitem__)
    assert ("", *(name.removeprefix("PMR_FORM_").lower() for name in names)) == window.FORMS
    assert set(window.FORMS[1:]) <= set(pmrun.__all__)
