# SPDX-License-Identifier: Apache-2.0
"""All ranks start or none: failures said in one line, and what a rank finds when it runs."""

import json
import os
import resource
import signal
import sys

import pytest

PYTHON = sys.executable
SHOW = "import json, os, sys; print(json.dumps({'env': dict(os.environ), 'cwd': os.getcwd()}))"


def shown(out):
    return {
        int(found["env"]["PMRUN_RANK"]): found
        for found in (json.loads(line.partition(b"] ")[2]) for line in out.splitlines())
    }


def test_environment(launch, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RANK", "77")
    job = launch([PYTHON, "-c", SHOW], 3, env=[["EXTRA", "a b"], ["PYTHONUNBUFFERED", "0"]])
    rc, out, _ = job.finish()
    ranks = shown(out)
    assert rc == 0 and sorted(ranks) == [0, 1, 2]
    for rank, found in ranks.items():
        env = found["env"]
        own = {"PMRUN_RANK": rank, "PMRUN_LOCAL_RANK": rank, "RANK": rank, "LOCAL_RANK": rank}
        same = {"PMRUN_WORLD_SIZE": 3, "PMRUN_LOCAL_WORLD_SIZE": 3, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3}
        rest = {"PMRUN_NODE_RANK": 0, "PMRUN_NUM_NODES": 1, "PMRUN_ATTEMPT": 0, "PMRUN_MAIN_IP": "127.0.0.1"}
        torch = {"MASTER_ADDR": "127.0.0.1", "PMRUN_PEERS": "127.0.0.1", "EXTRA": "a b", "PYTHONUNBUFFERED": "0"}
        for name, value in {**own, **same, **rest, **torch}.items():
            assert env[name] == str(value), name
        assert env["PMRUN_NODE_NAME"] == os.uname().nodename
        assert 1024 < int(env["MASTER_PORT"]) < 65536
        assert int(env["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 3)
    assert len({found["env"]["PMRUN_JOB_ID"] for found in ranks.values()}) == 1
    assert len({found["env"]["MASTER_PORT"] for found in ranks.values()}) == 1


def test_a_rank_is_clean(launch):
    body = """
import os, resource, signal
assert os.getsid(0) == os.getpid() == os.getpgid(0)
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
text = open('/proc/self/status').read()
fields = dict(line.split(':\\t') for line in text.splitlines() if line.startswith('Sig'))
python = (1 << 12) | (1 << 24) | (1 << 1)  # what Python itself changes: PIPE and XFSZ ignored, INT caught
python |= (1 << 31) | (1 << 32)  # glibc's own two, out of a program's reach: make's children have them ignored
assert int(fields['SigIgn'], 16) & ~python == 0, fields
assert int(fields['SigCgt'], 16) & ~python == 0, fields
window, store, debug = (int(os.environ[f'PMRUN_{name}_FD']) for name in ('WINDOW', 'STORE', 'DEBUG'))
opened = {fd for fd in range(100) if os.path.exists(f'/proc/self/fd/{fd}')}
assert opened == {0, 1, 2, window, store, debug}, opened
assert os.pread(window, 8, 0) == b'PMRWIN01'
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 64
print('clean')
"""

    def limits():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 20000))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    rc, out, err = launch([PYTHON, "-c", body], 16, preexec=limits).finish()
    assert (rc, err) == (0, b"")
    assert out.count(b"clean") == 16


def test_binding(launch):
    cpus = sorted(os.sched_getaffinity(0))
    body = "import os; print(sorted(os.sched_getaffinity(0)))"
    rc, out, _ = launch([PYTHON, "-c", body], 2, bind_to="core").finish()
    sets = [set(json.loads(line.partition(b"] ")[2])) for line in out.splitlines()]
    assert rc == 0
    assert set().union(*sets) <= set(cpus)
    assert len(cpus) == 1 or all(len(found) < len(cpus) for found in sets)
    rc, out, _ = launch([PYTHON, "-c", body], 2, map_by="core").finish()
    assert rc == 0 and out.count(str(cpus).encode()) == 2


def test_cwd(launch, tmp_path):
    rc, out, _ = launch(["pwd"], 2, cwd=str(tmp_path)).finish()
    assert rc == 0 and out.count(str(tmp_path).encode()) == 2


def write_script(path, text, mode):
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("make", "rc", "line"),
    [
        (lambda p: ["no-such-program"], 127, "program 'no-such-program' not found; check its name, PATH"),
        (lambda p: [write_script(p / "s", "#!/no/such/interpreter\n", 0o755)], 127, "not found; check its name, PATH"),
        (lambda p: [write_script(p / "s", "echo hi\n", 0o644)], 126, "Permission denied; try chmod +x"),
        (lambda p: [write_script(p / "s", "echo hi\n", 0o755)], 126, "neither a binary nor a script with '#!'"),
        (lambda p: [str(p)], 126, "may not be executed"),
    ],
)
def test_program_that_cannot_run(launch, tmp_path, make, rc, line):
    job = launch(make(tmp_path), 4)
    got, out, err = job.finish()
    assert (got, out) == (rc, b"")
    assert err.count(b"\n") == 1 and err.startswith(b"pmrun: cannot start rank ") and line in err.decode()
    job.assert_nothing_left(0)


def test_directory_that_is_not_there(launch):
    rc, _, err = launch(["true"], 2, cwd="/no/such/place").finish()
    assert rc == 75
    assert b"cannot enter directory '/no/such/place': No such file or directory; check --cwd" in err


def test_too_few_descriptors_is_said_before_the_start(launch):
    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 100))

    rc, out, err = launch(["echo", "started"], 64, preexec=few).finish()
    assert (rc, out) == (2, b"")
    assert err == (
        b"pmrun: 64 ranks need 352 open files, the hard limit is 100: raise it (ulimit -Hn) or start at most 13 ranks\n"
    )
    rc, out, _ = launch(["echo", "started"], 13, preexec=few).finish()
    assert rc == 0 and out.count(b"started") == 13


def test_too_small_a_file_size_is_one_line(launch):
    small = 64 << 10

    def tiny():
        resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))

    rc, out, err = launch(["echo", "started"], 2, preexec=tiny).finish()
    assert (rc, out) == (75, b"")
    assert err.startswith(b"pmrun: cannot make the ranks' shared memory: File too large; check the limits")
    assert err.count(b"\n") == 1


def test_too_many_ranks_for_a_node(launch):
    rc, out, err = launch(["echo", "started"], 100_000).finish()
    assert (rc, out) == (2, b"")
    assert err.count(b"\n") == 1


def test_start_timeout(launch, tmp_path):
    script = write_script(tmp_path / "s", "#!/bin/sh\necho ran\n", 0o755)
    job = launch([script], 2, start_timeout_s=0.0)
    rc, _, err = job.finish()
    assert rc == 75
    assert b"within --start-timeout 0 s" in err
    job.assert_nothing_left(0)


def test_events(launch, tmp_path):
    path = tmp_path / "events"
    rc, _, _ = launch(["sh", "-c", "exit $PMRUN_RANK"], 2, json_events=str(path)).finish()
    assert rc == 1
    events = [json.loads(line) for line in path.read_text().splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "gang_starting" and names[-1] == "gang_ended"
    assert {"rank_started", "gang_started", "rank_exited", "first_cause"} <= set(names)
    cause = next(event for event in events if event["event"] == "first_cause")
    assert (cause["kind"], cause["rank"], cause["text"]) == ("rank", 1, "exit code 1")
    assert events[-1]["exit_code"] == 1
    assert all(isinstance(event["time"], float) for event in events)


def test_events_file_that_cannot_be_written(launch):
    rc, out, err = launch(["echo", "hi"], 2, json_events="/no/such/place").finish()
    assert (rc, out) == (2, b"")
    assert err == b"pmrun: --json-events: cannot write '/no/such/place': No such file or directory; name another file\n"


def test_events_to_a_fifo_that_nobody_reads(launch, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    rc, _, err = launch(["true"], 1, json_events=str(tmp_path / "fifo")).finish()
    assert rc == 2
    assert b"No such device or address" in err


def test_events_file_on_a_full_disk_is_named_once_and_ends_nothing(launch):
    rc, out, err = launch(["echo", "hi"], 1, json_events="/dev/full").finish()
    assert (rc, out) == (0, b"[0] hi\n")
    line = "--json-events: cannot write '/dev/full': No space left on device; no more events are kept"
    assert err.decode() == f"pmrun: {line}\n"


def test_descriptors_of_the_shell_reach_the_ranks(launch):
    read, write = os.pipe()
    os.write(write, b"given")
    os.close(write)
    job = launch(["cat", f"/dev/fd/{read}"], 1, pass_fds=(read,))
    rc, out, _ = job.finish()
    os.close(read)
    assert (rc, out) == (0, b"[0] given")
