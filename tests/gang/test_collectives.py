# SPDX-License-Identifier: Apache-2.0
"""Every collective, in every form, on every dtype, against numpy: the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmrun import _native
from pmrun.errors import UsageError

BODY = Path(__file__).parent / "collectives_body.py"
WORLDS = [1, 2, 3, 4, 5, 8]
KINDS = [
    *("barrier", "broadcast", "reduce", "gather", "allgather", "scatter", "reduce_scatter", "alltoall", "scan"),
    *("exscan", "gatherv", "allgatherv", "scatterv", "reduce_scatterv", "alltoallv"),
]
UNKNOWN = """
import pmrun as pm
from gang_report import report
try:
    pm.init(timeout=60).barrier()
    report("joined")
except pm.UsageError as error:
    report(str(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize("group", ["reductions", "sizes", "blocks", "vectors", "layouts", "divided"])
@pytest.mark.parametrize("size", WORLDS)
def test_results_are_numpys(gang, rng, size: int, group: str) -> None:
    seed = rng.randrange(2**31)
    run = gang(size, BODY, str(seed), group)
    assert run.results == [[]] * size, f"seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["portable", "avx2", "avx512"])
def test_bits_do_not_depend_on_the_kernels(gang, rng, kernels: str) -> None:
    seed = rng.randrange(2**31)
    run = gang(4, BODY, str(seed), "reductions", env={"PMRUN_KERNELS": kernels}, check=False)
    if "cannot run the kernel set" in run.stderr:
        pytest.skip(f"this CPU has no {kernels}")
    assert run.results == [[]] * 4, f"seed {seed}"


@pytest.mark.parametrize("kernels", [None, "portable", "avx2", "avx512"])
def test_the_kernels_that_are_asked_for_are_used(gang, kernels: str | None) -> None:
    sets = {"portable": True}
    for name in ("avx2", "avx512"):
        try:
            _native.force_kernels(name)
            sets[name] = True
        except UsageError:
            sets[name] = False
    _native.force_kernels(None)
    best = [name for name, runs in sets.items() if runs][-1]
    assert _native.kernels_name() == best
    if kernels is not None and not sets[kernels]:
        pytest.skip(f"this CPU has no {kernels}")
    run = gang(
        2,
        """
        import pmrun as pm
        from gang_report import report
        from pmrun import _native
        pm.init(timeout=60)
        report(_native.kernels_name())
        """,
        env={} if kernels is None else {"PMRUN_KERNELS": kernels},
    )
    assert run.results == [kernels or best] * 2


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", _native.algorithm_names("allreduce"))
def test_bits_do_not_depend_on_the_algorithm(gang, rng, algorithm: str) -> None:
    seed = rng.randrange(2**31)
    for size, group in ((3, "reductions"), (4, "reductions"), (3, "sizes")):
        run = gang(size, BODY, str(seed), group, env={"PMRUN_ALGORITHM": f"allreduce={algorithm}"})
        assert run.results == [[]] * size, f"seed {seed}"


def _rounds() -> list[str]:
    """Values of the variable, so many that each algorithm of every other collective is in one of them."""
    names = {kind: _native.algorithm_names(kind) for kind in KINDS}
    number = max(map(len, names.values()))
    return [",".join(f"{kind}={of[i % len(of)]}" for kind, of in names.items()) for i in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize("choices", _rounds())
def test_blocks_do_not_depend_on_the_algorithm(gang, rng, choices: str) -> None:
    seed = rng.randrange(2**31)
    for group in ("blocks", "vectors"):
        run = gang(3, BODY, str(seed), group, env={"PMRUN_ALGORITHM": choices})
        assert run.results == [[]] * 3, f"seed {seed}"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PMRUN_ALGORITHM", "allreduce=fastest", ["allreduce", "fastest", "sliced"]),
        ("PMRUN_ALGORITHM", "allreduce=flat,sum=flat", ["'sum'", "reduce_scatter"]),
        ("PMRUN_ALGORITHM", "sliced", ["'sliced'", "allreduce=sliced"]),
        ("PMRUN_ALGORITHM", "barrier=alone", ["alone", "flat"]),
        ("PMRUN_KERNELS", "mmx", ["mmx", "portable", "avx512"]),
    ],
)
def test_unknown_choices_are_refused(gang, name: str, value: str, words: list[str]) -> None:
    run = gang(2, UNKNOWN, env={name: value})
    for text in run.results:
        assert text.startswith(f"{name}: ")
        assert [word for word in words if word not in text] == []


def test_choices_that_are_empty_are_none(gang) -> None:
    run = gang(2, UNKNOWN, env={"PMRUN_ALGORITHM": "", "PMRUN_KERNELS": ""})
    assert run.results == ["joined"] * 2


def test_none_ends_a_forced_choice() -> None:
    for kind in ("allreduce", "barrier", "alltoallv"):
        for name in _native.algorithm_names(kind):
            _native.force_algorithm(kind, name)
        _native.force_algorithm(kind, None)
        with pytest.raises(UsageError, match="use one of"):
            _native.force_algorithm(kind, "")
