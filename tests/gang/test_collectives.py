# SPDX-License-Identifier: Apache-2.0
"""Every collective, in every form, on every dtype, against numpy: the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

BODY = Path(__file__).parent / "collectives_body.py"
WORLDS = [1, 2, 3, 4, 5, 8]


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
    if "PMRUN_KERNELS" in run.stderr:
        pytest.skip(f"this CPU has no {kernels}")
    assert run.results == [[]] * 4, f"seed {seed}"
