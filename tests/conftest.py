# SPDX-License-Identifier: Apache-2.0
"""Fixtures and rules that hold for every test.

A test that leaves a process, thread, descriptor, shared memory or file behind fails (leak_guard.py), and so does one
that causes a warning. Random input comes from one seed, printed at the top and repeatable with --seed. Temporary
files live in one private directory, which is gone after the run.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

import gang_helper
import leak_guard
import machines

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("pmrun", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("pmrun")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pmrun")
    group.addoption("--seed", type=int, default=None, help="seed of all random input (printed at the start)")
    group.addoption("--sanitize", default="", help="sanitizer of the plain C tests: address,undefined or thread")
    group.addoption("--schedules", type=int, default=2000, help="how many schedules of a job are simulated, twice")
    group.addoption("--machine", default="", help="machine of the plain C tests, another than this: aarch64")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a quarter of a second; run all the same")
    if config.getoption("--seed") is None:
        config.option.seed = random.SystemRandom().randrange(2**32)
    private = tempfile.mkdtemp(prefix="test-run-")
    os.environ["TMPDIR"] = private
    os.environ[leak_guard.MARK] = os.path.basename(private)
    tempfile.tempdir = None
    os.environ["XDG_STATE_HOME"] = os.path.join(private, "pytest", "state")  # no report of a failure goes to the user's
    config.stash[_PRIVATE] = Path(private)
    if not config.option.basetemp:
        config.option.basetemp = os.path.join(private, "pytest")
    os.mkdir(os.path.join(private, "pytest"))


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_PRIVATE], ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed} (repeat with --seed {config.option.seed})"


_PRIVATE = pytest.StashKey[Path]()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves something behind."""
    private = request.config.stash[_PRIVATE]
    before = leak_guard.take(private)
    yield
    found = leak_guard.leaks(before, private)
    if found:
        pytest.fail("the test left behind:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture(autouse=True)
def no_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' results do not depend on the PMRUN_* variables of whoever runs them."""
    for name in list(os.environ):
        if name.startswith("PMRUN_"):
            monkeypatch.delenv(name)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that depend on the run's seed and the test's name only."""
    return random.Random(f"{request.config.option.seed}:{request.node.nodeid}")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def machines_of_the_session(request: pytest.FixtureRequest) -> Iterator[machines.Cluster]:
    """Four machines, a to d, made when the first test asks for them."""
    reason = machines.why_not()
    if reason:
        pytest.skip(reason)
    folder = request.config.stash[_PRIVATE] / "cluster"
    folder.mkdir()
    cluster = machines.Cluster(folder, "abcd")
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(machines_of_the_session: machines.Cluster) -> Iterator[machines.Cluster]:
    """Machines a to d, on which nothing runs when the test begins nor when it ends: see tests/machines.py."""
    machines_of_the_session.until_quiet()
    yield machines_of_the_session
    machines_of_the_session.until_quiet(5.0)
    for machine in machines_of_the_session.machines.values():
        machines.until(lambda m=machine: not m.sessions(), f"the end of sshd's sessions on {machine.name}")


@pytest.fixture
def gang(tmp_path: Path) -> Callable[..., gang_helper.GangRun]:
    """`gang(n, body, ...)`: run a script on n ranks under the real command; see gang_helper.gang_run."""
    return functools.partial(gang_helper.gang_run, directory=tmp_path)
