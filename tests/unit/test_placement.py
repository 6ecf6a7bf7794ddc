# SPDX-License-Identifier: Apache-2.0
"""Ranks to cores."""

import pytest

from pmrun.launcher.job import BindTo, Job
from pmrun.launcher.placement import cores, map_by_core, place_local


def topology(root, siblings):
    for cpu, text in siblings.items():
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    return str(root)


def test_cores_group_siblings(tmp_path):
    root = topology(tmp_path, {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5", 2: "2-3", 3: "2-3"})
    assert cores({0, 1, 2, 3, 4, 5}, root) == [(0, 4), (1, 5), (2, 3)]
    assert cores({4, 1}, root) == [(1,), (4,)], "only what the mask allows"
    assert cores({7, 9}, root) == [(7,), (9,)], "unknown topology"


@pytest.mark.parametrize(
    ("ranks", "cpus"),
    [
        (3, ((0,), (1,), (2,))),
        (5, ((0,), (1,), (2,), (0,), (1,))),
        (2, ((0,), (1, 2))),
        (1, ((0, 1, 2),)),
    ],
)
def test_round_robin_and_fair_shares(ranks, cpus):
    assert map_by_core(ranks, [(0,), (1,), (2,)]) == cpus


def test_local_places_all_on_one_node():
    node = place_local(Job(command=("p",), world_size=5), "here")
    assert (node.name, node.ranks, node.cpus) == ("here", range(5), ())
    assert len(place_local(Job(command=("p",), world_size=5, bind_to=BindTo.CORE), "here").cpus) == 5
