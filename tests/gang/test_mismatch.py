# SPDX-License-Identifier: Apache-2.0
"""Which of three ranks deviates x in what: every rank is told the deviating call and its line, and no data moved."""

import re

import pytest

# What most ranks call, and what one of them does instead.
DEVIATIONS = {
    "operation": ("w.allreduce(x, out=out)", "w.allgather(x)"),
    "dtype": ("w.allreduce(x, out=out)", "w.allreduce(integers, out=integers)"),
    "count": ("w.allreduce(x, out=out)", "w.allreduce(x[:3], out=out[:3])"),
    "root": ("w.broadcast(out, deviator)", "w.broadcast(out, (deviator + 1) % 3)"),
    "order": ("w.allreduce(x, out=out); w.barrier()", "w.barrier(); w.allreduce(x, out=out)"),
}

BODY = """
import array, sys
import pmrun as pm
from gang_report import report
w = pm.init(timeout=60)
own, deviator = 5 + w.rank, int(sys.argv[1])
x, out = (memoryview(array.array("d", [value] * 4)) for value in (1.0, own))
integers = memoryview(array.array("q", [own] * 4))
try:
    if w.rank != deviator:
        {usual}
    else:
        {deviating}
except pm.CollectiveMismatch as error:
    report((str(error), {{*out, *integers}} == {{own}}))
"""


@pytest.mark.parametrize("what", DEVIATIONS)
@pytest.mark.parametrize("rank", range(3))
def test_every_rank_is_told_who_deviates_and_where(gang, rank: int, what: str) -> None:
    usual, deviating = DEVIATIONS[what]
    run = gang(3, BODY.format(usual=usual, deviating=deviating), str(rank), check=False)
    for text, untouched in run.results:
        told = re.findall(r"rank (\d): \S+\(.*?\) at \S+body.py:(\d+) in <module>", text)
        assert len(told) == 2 and (str(rank), "13") in told, text
        assert next(line for who, line in told if who != str(rank)) == "11", text
        assert untouched
