# SPDX-License-Identifier: Apache-2.0
"""What a rank's environment is made of."""

import json

import pytest

from pmrun import wire
from pmrun.errors import UsageError
from pmrun.launcher import backends
from pmrun.launcher.environment import base_environment, rank_environment
from pmrun.launcher.job import Job


def start(**changes):
    fields = {
        "job_id": "j", "attempt": 2, "node_rank": 1, "node_name": "b", "peers": ("10.0.0.1", "10.0.0.2"),
        "main_port": 20001, "first_rank": 4, "local_world_size": 4, "world_size": 8, "command": (b"p",), "cwd": None,
        "env": (), "bind_to_core": False, "stdin_ranks": (), "credit_bytes": 1, "layout": (4, 4), "data_address": "10.0.0.2",
        **changes,
    }  # fmt: skip
    return wire.Start(**fields)


def test_second_node():
    base = base_environment({b"HOME": b"/h"}, start(), 8)
    own = rank_environment(start(), 3, 9, 8, 7)
    assert base[b"PMRUN_PEERS"] == b"10.0.0.1,10.0.0.2"
    assert base[b"PMRUN_MAIN_IP"] == base[b"MASTER_ADDR"] == b"10.0.0.1"
    assert (base[b"PMRUN_NODE_RANK"], base[b"PMRUN_NUM_NODES"], base[b"PMRUN_ATTEMPT"]) == (b"1", b"2", b"2")
    assert (base[b"PMRUN_LAYOUT"], base[b"PMRUN_DATA_ADDRESS"], base[b"PMRUN_TRANSPORT"]) == (
        b"4,4",
        b"10.0.0.2",
        b"auto",
    )
    assert b"PMRUN_ENCRYPT" not in base and b"PMRUN_REPRODUCIBLE" not in base
    assert base[b"OMP_NUM_THREADS"] == b"2" and base[b"HOME"] == b"/h"
    assert (own[b"PMRUN_RANK"], own[b"RANK"], own[b"LOCAL_RANK"], own[b"PMRUN_WINDOW_FD"]) == (b"7", b"7", b"3", b"9")
    assert (own[b"PMRUN_STORE_FD"], own[b"PMRUN_DEBUG_FD"]) == (b"8", b"7")


def test_who_wins():
    inherited = {b"OMP_NUM_THREADS": b"5", b"MASTER_PORT": b"1", b"PMRUN_JOB_ID": b"outer", b"A": b"old"}
    inherited[b"PMRUN_JOIN_TIMEOUT"] = b"3"
    base = base_environment(inherited, start(env=((b"A", b"new"), (b"MASTER_ADDR", b"h"))), 8)
    assert base[b"OMP_NUM_THREADS"] == b"5"
    assert base[b"MASTER_PORT"] == b"20001", "inherited from another gang"
    assert base[b"MASTER_ADDR"] == b"h", "the job's own"
    assert (base[b"A"], base[b"PMRUN_JOB_ID"]) == (b"new", b"j")
    assert base[b"PMRUN_JOIN_TIMEOUT"] == b"60", "inherited from another gang"
    assert base_environment({}, start(), 1)[b"OMP_NUM_THREADS"] == b"1"
    assert base_environment({}, start(start_timeout_s=2.5), 1)[b"PMRUN_JOIN_TIMEOUT"] == b"2.5"
    chosen = start(env=((b"PMRUN_JOIN_TIMEOUT", b"7"),), start_timeout_s=2.5)
    assert base_environment({}, chosen, 1)[b"PMRUN_JOIN_TIMEOUT"] == b"7"


def test_dry_run_is_json_and_starts_nothing():
    job = Job(command=("no-such-program", "x"), world_size=2, cwd="/tmp", env=(("A", "1"),))
    shown = json.loads(json.dumps(backends.load("local").Backend().dry_run(job)))
    assert [rank["rank"] for rank in shown["ranks"]] == [0, 1]
    first = shown["ranks"][0]
    assert (first["command"], first["cwd"], first["cpus"]) == (["no-such-program", "x"], "/tmp", None)
    assert first["env"]["A"] == "1" and first["env"]["PMRUN_RANK"] == "0"
    assert first["env"]["MASTER_PORT"] == "(a free port)"
    assert first["stdin"] and not shown["ranks"][1]["stdin"]


def test_dry_run_shows_what_a_rank_would_get():
    job = Job(command=("true",), world_size=1, env=(("MASTER_PORT", "1234"), ("RANK", "7")))
    shown = backends.load("local").Backend().dry_run(job)["ranks"][0]["env"]
    assert (shown["MASTER_PORT"], shown["RANK"]) == ("1234", "0")
    assert shown["PMRUN_JOB_ID"] == "(a new name)"


def test_dry_run_refuses_what_the_start_would():
    with pytest.raises(UsageError, match="2000 ranks on one node: the most is 1024"):
        backends.load("local").Backend().dry_run(Job(command=("true",), world_size=2000))
