# SPDX-License-Identifier: Apache-2.0
"""The leak guard itself: each kind of leak is made on purpose, must be seen, and is then undone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import leak_guard


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leak_guard, "PATIENCE_S", 0.05)


def private() -> Path:
    return Path(os.environ["TMPDIR"])


def found(before: leak_guard.Snapshot) -> str:
    return "\n".join(leak_guard.leaks(before, private()))


def test_a_clean_test_has_no_leaks() -> None:
    before = leak_guard.take(private())
    subprocess.run(["true"], check=True)
    assert found(before) == ""


def test_a_child_is_seen_and_ended() -> None:
    before = leak_guard.take(private())
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert f"process {child.pid} is still there: cat" in found(before)
        assert child.wait(10) == -9


def test_a_daemonised_grandchild_is_seen_and_ended() -> None:
    before = leak_guard.take(private())
    orphan = "import os, signal\nif os.fork() == 0:\n os.setsid(); print(os.getpid(), flush=True); signal.pause()"
    done = subprocess.Popen([sys.executable, "-c", orphan], stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    pid = int(done.stdout.readline())
    assert done.wait(10) == 0
    done.stdout.close()
    assert f"process {pid} is still there" in found(before)


def test_a_zombie_is_seen() -> None:
    before = leak_guard.take(private())
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert f"process {pid}" in found(before)
    os.waitpid(pid, 0)


def test_a_thread_is_seen() -> None:
    before = leak_guard.take(private())
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="forgotten")
    thread.start()
    assert "thread 'forgotten' is still running" in found(before)
    release.set()
    thread.join()


def test_a_descriptor_is_seen() -> None:
    before = leak_guard.take(private())
    fd = os.memfd_create("forgotten")
    assert f"descriptor {fd} is still open: /memfd:forgotten" in found(before)
    os.close(fd)


@pytest.mark.parametrize("directory", ["/dev/shm", "/tmp", "private"])
def test_a_file_is_seen(directory: str) -> None:
    before = leak_guard.take(private())
    path = (private() if directory == "private" else Path(directory)) / f"pmrun-guard-{os.getpid()}"
    path.touch()
    assert f"{path} was left" in found(before)
    path.unlink()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [("os.memfd_create('left')", "1 passed, 1 error"), ("os.close(os.memfd_create('closed'))", "1 passed in")],
)
def test_the_fixture_fails_a_leaking_test(body: str, outcome: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(f"import os\n\ndef test_one():\n    {body}\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}",
         "-c", str(root / "pyproject.toml"), str(tmp_path / "test_one.py")],
        env={**os.environ, "PYTHONPATH": str(root / "tests")}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert outcome in run.stdout, run.stdout + run.stderr
