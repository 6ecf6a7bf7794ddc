# SPDX-License-Identifier: Apache-2.0
"""One rank of a random program deviates: every rank is told which, and which call; tests/deviating_ranks.py plays it.

The run's seed decides the programs (--seed repeats it); what fails is shrunk to the shortest program that does.
"""

import re

import deviating_ranks as ranks_of
import hypothesis
import hypothesis.strategies as st
import pytest
from deviating_ranks import Call, Case

PROGRAMS = 40
WAYS = ("operation", "dtype", "count", "root", "reduction", "order", "extra", "missing", "returns", "raises")


def calls(ranks):
    return st.builds(
        Call,
        st.sampled_from(ranks_of.KINDS),
        st.sampled_from("dfiq"),
        st.integers(1, 5),
        st.integers(0, ranks - 1),
        st.sampled_from(["sum", "max"]),
        st.booleans(),
    )


def other(draw, call, ranks, **fixed):
    """A call that differs in what `fixed` leaves open."""
    return draw(
        calls(ranks).map(lambda drawn: drawn._replace(**fixed)).filter(lambda it: it.meaning() != call.meaning())
    )


def deviate(draw, way, program, at, ranks):
    """The deviating rank's calls."""
    call = program[at]
    kept = call._asdict()
    if way == "operation":
        changed = other(draw, call, ranks)
    elif way in ("dtype", "count", "root"):
        kept.pop(way)
        changed = other(draw, call, ranks, **kept)
    elif way == "reduction":
        changed = call._replace(op="max" if call.op == "sum" else "sum")
    elif way == "order":
        return (*program[:at], program[at + 1], call, *program[at + 2 :])
    elif way == "extra":
        return (*program[:at], draw(calls(ranks)), *program[at:])
    elif way == "missing":
        return (*program[:at], *program[at + 1 :])
    else:
        return program[:at]
    return (*program[:at], changed, *program[at + 1 :])


def can(way, program, at):
    """Whether the call there can be deviated from in this way."""
    kind = program[at].kind
    if way in ("dtype", "count"):
        return kind != "barrier"
    if way == "root":
        return kind in ranks_of.ROOTED
    if way == "reduction":
        return kind in ranks_of.REDUCING
    if way == "order":
        return at + 1 < len(program) and program[at + 1].meaning() != program[at].meaning()
    return True


@st.composite
def cases(draw):
    ranks = draw(st.integers(2, 4))
    program = tuple(draw(st.lists(calls(ranks), min_size=1, max_size=6)))
    at = draw(st.integers(0, len(program) - 1))
    way = draw(st.sampled_from([way for way in WAYS if can(way, program, at)]))
    deviating = deviate(draw, way, program, at, ranks)
    return Case(ranks, draw(st.integers(0, ranks - 1)), program, deviating, way if way in ("returns", "raises") else "")


def check(case):
    told = ranks_of.play(case)
    if case.last:
        others = [told[rank] for rank in range(case.ranks) if rank != case.deviator]
        assert {(item.error, item.rank) for item in others} == {("RankFailed", case.deviator)}, told
        assert told[case.deviator].error == {"returns": "", "raises": "ValueError"}[case.last], told
        return
    line = case.first_difference()
    for item in told:
        assert item.error == "CollectiveMismatch", told
        sites = re.findall(r"rank (\d): \S+.*? at \S*?(\w+\.py):(\d+) in <module>", item.text)
        assert (str(case.deviator), "deviating.py", str(line)) in sites, (line, item.text)
        assert [site[1:] for site in sites if site[0] != str(case.deviator)] == [("usual.py", str(line))], item.text


@pytest.mark.slow
def test_every_rank_is_told_who_deviates_and_where(request):
    settings = hypothesis.settings(max_examples=PROGRAMS, derandomize=False, database=None)
    hypothesis.seed(request.config.option.seed)(settings(hypothesis.given(cases())(check)))()
