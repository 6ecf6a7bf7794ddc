# SPDX-License-Identifier: Apache-2.0
"""Standard input: to one rank, all or none; bit-exact under back-pressure; its end; a job in the background."""

import hashlib
import os
import pty
import random
import select
import signal
import subprocess
import sys

PYTHON = sys.executable
DIGEST = """
import hashlib, os
digest = hashlib.sha256()
while data := os.read(0, 1 << 20):
    digest.update(data)
print(os.environ['PMRUN_RANK'], digest.hexdigest())
"""
EMPTY = hashlib.sha256().hexdigest()


def big_file(tmp_path, size):
    seed = 7
    print("seed", seed)
    data = random.Random(seed).randbytes(1 << 20) * (size >> 20) + b"no newline at the end"
    (tmp_path / "input").write_bytes(data)
    return os.open(tmp_path / "input", os.O_RDONLY), hashlib.sha256(data).hexdigest()


def test_file_to_rank_0(launch, tmp_path):
    fd, digest = big_file(tmp_path, 64 << 20)
    rc, out, _ = launch([PYTHON, "-c", DIGEST], 3, source=fd).finish()
    os.close(fd)
    assert rc == 0
    assert set(out.decode().splitlines()) == {f"[0] 0 {digest}", f"[1] 1 {EMPTY}", f"[2] 2 {EMPTY}"}


def test_pipe_to_another_rank(launch):
    body = "import sys; [sys.stdout.write('%d,' % i) for i in range(1 << 19)]"
    digest = hashlib.sha256("".join(f"{i}," for i in range(1 << 19)).encode()).hexdigest()
    with subprocess.Popen([PYTHON, "-c", body], stdout=subprocess.PIPE) as source:
        rc, out, _ = launch([PYTHON, "-c", DIGEST], 2, source=source.stdout.fileno(), stdin=1).finish()
    assert rc == 0
    assert set(out.decode().splitlines()) == {f"[0] 0 {EMPTY}", f"[1] 1 {digest}"}


def test_to_all(launch, tmp_path):
    fd, digest = big_file(tmp_path, 8 << 20)
    rc, out, _ = launch([PYTHON, "-c", DIGEST], 4, source=fd, stdin="all").finish()
    os.close(fd)
    assert rc == 0
    assert set(out.decode().splitlines()) == {f"[{r}] {r} {digest}" for r in range(4)}


def test_to_none(launch, tmp_path):
    fd, _ = big_file(tmp_path, 1 << 20)
    rc, out, _ = launch([PYTHON, "-c", DIGEST], 2, source=fd, stdin="none").finish()
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0, "not a byte was read"
    os.close(fd)
    assert rc == 0
    assert set(out.decode().splitlines()) == {f"[{r}] {r} {EMPTY}" for r in range(2)}


def test_all_when_some_do_not_read(launch, tmp_path):
    fd, digest = big_file(tmp_path, 4 << 20)
    body = "import os\nif os.environ['PMRUN_RANK'] != '1':" + DIGEST.replace("\n", "\n    ")
    rc, out, _ = launch([PYTHON, "-c", body], 3, source=fd, stdin="all").finish()
    os.close(fd)
    assert rc == 0
    assert set(out.decode().splitlines()) == {f"[{r}] {r} {digest}" for r in (0, 2)}


def test_slow_reader_is_not_run_ahead_of(launch, tmp_path, launched):
    fd, _ = big_file(tmp_path, 16 << 20)
    body = "import signal; print('ready', flush=True); signal.pause()"
    job = launch([PYTHON, "-c", body], 1, source=fd)
    job.read_until(1)
    launched.until_idle(job.everything(), "reading stops by back-pressure")
    assert os.lseek(fd, 0, os.SEEK_CUR) <= 512 << 10
    os.close(fd)
    job.signal(signal.SIGINT)
    assert job.finish()[0] == 130


def test_closed_descriptors(launch):
    def close_all():
        for fd in (0, 1, 2):
            os.close(fd)

    job = launch([PYTHON, "-c", DIGEST], 2, source=None, stdout=None, stderr=None, preexec=close_all)
    assert job.process.wait(30) == 0


def test_interactive_terminal(launch):
    body = """
import contextlib, os
with contextlib.suppress(EOFError):  # a rank without input that failed would end the other one, too
    print('hello', input('name? '), flush=True)
    os._exit(int(os.environ['PMRUN_RANK']))
"""
    ours, theirs = pty.openpty()
    job = launch([PYTHON, "-c", body], 2, source=theirs, output={"only_ranks": [0]})
    os.close(theirs)
    job.read_until(1, b"name? ")
    os.write(ours, b"ann\n")
    rc, out, err = job.finish()
    os.close(ours)
    assert (rc, out) == (0, b"[0] name? hello ann\n"), err


def test_background_job_with_a_terminal_goes_on(tmp_path, launched):
    script = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:], process_group=0) if sys.version_info >= (3, 11) else "
        "subprocess.Popen(sys.argv[1:], preexec_fn=lambda: os.setpgid(0, 0))\n"
        "print('code', child.wait(), flush=True)\n"
    )
    job = '{"command": ["echo", "hi"], "world_size": 2, "timeout_s": 20}'
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(PYTHON, [PYTHON, "-c", script, PYTHON, str(launched.DRIVE), job])
    os.write(fd, b"typed ahead\n")  # the terminal is readable, but not for a background job
    seen = b""
    while b"code" not in seen or not seen.endswith(b"\n"):
        assert select.select([fd], [], [], 30)[0], seen
        seen += os.read(fd, 1000)
    os.waitpid(pid, 0)
    os.close(fd)
    assert b"code 0" in seen
    assert seen.count(b"hi\r\n") == 2
