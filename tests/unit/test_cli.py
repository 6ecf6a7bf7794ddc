# SPDX-License-Identifier: Apache-2.0
"""The command line: what becomes of good input, and the one line that each kind of bad input gets.

The backend is replaced by one that keeps the job, so nothing is started here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from pmrun.errors import ExitCode, LaunchError, UsageError
from pmrun.launcher import cli
from pmrun.launcher.job import BindTo, Job, Stream
from pmrun.launcher.options import OPTIONS


class KeptJobs:
    """Stands where the backends are: keeps each job, and ends as the test wants."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.ending: int | Exception = 0

    def backends(self) -> types.ModuleType:
        kept = self

        class Backend:
            def run(self, job: Job) -> int:
                kept.jobs.append(job)
                if isinstance(kept.ending, Exception):
                    raise kept.ending
                return kept.ending

            def dry_run(self, job: Job) -> dict[str, object]:
                return {"ranks": job.world_size}

        def load(name: str) -> types.SimpleNamespace:
            if name not in module.names():
                raise UsageError("unknown")
            return types.SimpleNamespace(Backend=Backend)

        module = types.ModuleType("pmrun.launcher.backends")
        module.names = lambda: ["elsewhere", "local"]  # type: ignore[attr-defined]
        module.load = load  # type: ignore[attr-defined]
        module.submits = lambda name: False  # type: ignore[attr-defined]
        return module


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> KeptJobs:
    kept = KeptJobs()
    module = kept.backends()
    monkeypatch.setitem(sys.modules, "pmrun.launcher.backends", module)
    monkeypatch.setattr("pmrun.launcher.backends", module, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print('hello')\n")
    return kept


@pytest.fixture
def job_of(kept: KeptJobs) -> Callable[..., Job]:
    """Runs the command and gives the job that the backend got."""

    def run(*arguments: str) -> Job:
        assert cli.main(arguments) == 0
        return kept.jobs[-1]

    return run


@pytest.fixture
def refusal(kept: KeptJobs, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused; gives its one line."""

    def run(*arguments: str) -> str:
        before = sorted(Path().rglob("*"))
        assert cli.main(arguments) == ExitCode.USAGE
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("pmrun: ")
        assert err.count("\n") == 1
        assert kept.jobs == []
        assert sorted(Path().rglob("*")) == before
        return err.removeprefix("pmrun: ").rstrip()

    return run


# ---- good input -------------------------------------------------------------------------------------------


def test_a_script_runs_under_this_python_with_its_arguments_untouched(job_of: Callable[..., Job]) -> None:
    job = job_of("-n", "3", "train.py", "--help", "-n", "5", "--", "--grace=x")
    assert job.command == (sys.executable, "train.py", "--help", "-n", "5", "--", "--grace=x")
    assert job.world_size == 3
    assert job.backend == "local"


def test_a_module_and_its_arguments(job_of: Callable[..., Job]) -> None:
    assert job_of("-n2", "-m", "json.tool", "-n", "7").command == (sys.executable, "-m", "json.tool", "-n", "7")


def test_a_module_of_the_current_directory_is_found_without_import(job_of: Callable[..., Job], tmp_path: Path) -> None:
    package = tmp_path / "pkg_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "train.py").touch()
    assert job_of("-m", "pkg_of_test.train").command[1:] == ("-m", "pkg_of_test.train")


def test_a_program_is_found_on_the_path(job_of: Callable[..., Job]) -> None:
    command = job_of("-n", "2", "--", "true", "-x", "--version").command
    assert os.path.basename(command[0]) == "true"
    assert command[1:] == ("-x", "--version")


def test_a_bare_name_that_is_no_file_is_a_program(job_of: Callable[..., Job]) -> None:
    assert os.path.basename(job_of("-n", "8", "true").command[0]) == "true"


def test_a_file_goes_before_a_program_of_the_same_name(job_of: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "true").write_text("print('a script')\n")
    assert job_of("true").command == (sys.executable, "true")


def test_all_options_reach_the_job(job_of: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "kept")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "train.py").touch()
    job = job_of(
        "-n", "4", "--map-by", "core", "--bind-to=core", "-x", "A=1", "--env", "B=2=3", "-xFROM_HERE", "-x", "A=4",
        "--cwd", "sub", "--timeout", "2h", "--start-timeout=1.5", "--grace", "500ms", "--no-tag", "--timestamp",
        "--only-ranks", "0,2-3", "--output-dir", "logs/run", "--stdin", "all", "--json-events", "events.json", "train.py",
    )  # fmt: skip
    assert (job.map_by, job.bind_to) == (BindTo.CORE, BindTo.CORE)
    assert dict(job.env) == {"A": "4", "B": "2=3", "FROM_HERE": "kept"}
    assert job.cwd == str(tmp_path / "sub")
    assert (job.timeout_s, job.start_timeout_s, job.grace_s) == (7200.0, 1.5, 0.5)
    assert (job.output.tag, job.output.timestamp) == (False, True)
    assert job.output.only_ranks == {0, 2, 3}
    assert job.output.directory == str(tmp_path / "logs" / "run")
    assert os.path.isdir(job.output.directory)
    assert job.stdin is Stream.ALL
    assert job.json_events == str(tmp_path / "events.json")


@pytest.mark.parametrize(
    ("arguments", "bound"),
    [
        ("", BindTo.NONE),
        ("--map-by core", BindTo.CORE),
        ("--map-by core --bind-to none", BindTo.NONE),
        ("--map-by none --bind-to core", BindTo.CORE),
    ],
)
def test_ranks_that_are_mapped_are_bound_unless_said(job_of: Callable[..., Job], arguments: str, bound: BindTo) -> None:
    assert job_of(*arguments.split(), "train.py").bind_to is bound


def test_the_number_of_ranks_is_that_of_the_cpus_unless_said(
    job_of: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmrun.launcher.cgroup.usable_cpus", lambda groups: 7)
    assert job_of("train.py").world_size == 7
    assert job_of("-n", "auto", "train.py").world_size == 7


@pytest.mark.parametrize(("ending", "code"), [(0, 0), (3, 3), (137, 137)])
def test_the_exit_code_is_the_backends(kept: KeptJobs, ending: int, code: int) -> None:
    kept.ending = ending
    assert cli.main(["train.py"]) == code


def test_a_refusal_by_the_backend_is_one_line(kept: KeptJobs, capsys: pytest.CaptureFixture[str]) -> None:
    kept.ending = UsageError("too many ranks;\n take fewer")
    assert cli.main(["train.py"]) == ExitCode.USAGE
    assert capsys.readouterr().err == "pmrun: too many ranks;  take fewer\n"
    kept.ending = LaunchError("rank 1 did not start")
    assert cli.main(["train.py"]) == ExitCode.START_FAILED
    assert capsys.readouterr().err == "pmrun: rank 1 did not start\n"


def test_a_defect_has_a_code_of_its_own_and_its_traceback(kept: KeptJobs, capsys: pytest.CaptureFixture[str]) -> None:
    kept.ending = ZeroDivisionError("of pmrun's own")
    assert cli.main(["train.py"]) == ExitCode.INTERNAL
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("Traceback")
    assert said[-2:] == [
        "ZeroDivisionError: of pmrun's own",
        "pmrun: this is a defect of pmrun; please report it with the lines above",
    ]


def test_dry_run_prints_json_and_creates_nothing(kept: KeptJobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-n", "2", "--dry-run", "--output-dir", "logs", "train.py"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ranks": 2}
    assert kept.jobs == []
    assert not Path("logs").exists()


# ---- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "nothing to run; write: pmrun -n 4 script.py args... (pmrun --help has examples)"),
        ("-n 2", "nothing to run; write: pmrun -n 4 script.py args... (pmrun --help has examples)"),
        ("-n 0 train.py", "-n '0': the number of ranks is a whole number from 1 on, or 'auto'"),
        ("-n x train.py", "-n 'x': the number of ranks is a whole number from 1 on, or 'auto'"),
        ("-n -3 train.py", "-n '-3': the number of ranks is a whole number from 1 on, or 'auto'"),
        ("-n 2.5 train.py", "-n '2.5': the number of ranks is"),
        ("-n", "option -n needs a value: -n N"),
        ("--grace -- true", "option --grace needs a value: --grace TIME"),
        ("--grce 3 train.py", "unknown option --grce (did you mean --grace?); see pmrun --help"),
        ("--no-grace train.py", "unknown option --no-grace"),
        ("--no-tga train.py", "unknown option --no-tga (did you mean --no-tag?); see pmrun --help"),
        ("-q train.py", "unknown option -q (did you mean --queue?); see pmrun --help"),
        ("--tag=yes train.py", "option --tag takes no value; write --tag alone"),
        ("-hx train.py", "option -h takes no value; write options one by one"),
        ("--grace soon train.py", "--grace 'soon': a time is a number of seconds, or has a unit: 1.5, 500ms, 30s"),
        ("--grace nan train.py", "--grace 'nan': a time is"),
        ("--grace -1 train.py", "--grace '-1': a time is"),
        ("--timeout 0 train.py", "--timeout '0': it must be longer than zero; leave the option out for no limit"),
        ("--map-by node train.py", "--map-by 'node': there is no binding 'node' (did you mean none?); choose one of: core, none"),
        ("--on mars train.py", "--on mars: there is no backend 'mars'; choose one of: elsewhere, local"),
        ("--on locl train.py", "--on locl: there is no backend 'locl' (did you mean local?); choose one of"),
        ("-n 2 --stdin 2 train.py", "--stdin 2: there is no rank 2 among 2 ranks (0 to 1); choose one of them"),
        ("-n 1 --stdin 1 train.py", "--stdin 1: there is no rank 1 among 1 rank (0); choose one of them"),
        ("--stdin some train.py", "--stdin 'some': give one rank's number, 'all' or 'none'"),
        ("-n 2 --only-ranks 0-2 train.py", "--only-ranks: there is no rank 2 among 2 ranks (0 to 1)"),
        ("--only-ranks 3-1 train.py", "--only-ranks '3-1': the range 3-1 runs backwards; write 1-3"),
        ("--only-ranks 1, train.py", "--only-ranks '1,': ranks are numbers and ranges, separated by commas: 0,2-4"),
        ("--only-ranks 0-99999999999 train.py", "--only-ranks '0-99999999999': there is no rank 99999999999"),
        ("-x UNSET_HERE train.py", "--env UNSET_HERE: UNSET_HERE is not set here; give it a value"),
        ("-x =1 train.py", "-x '=1': write NAME=VALUE"),
        ("-x == train.py", "-x '==': write NAME=VALUE"),
        ("-x \udcffA=1 train.py", "-x '\\udcffA=1': '\\udcffA' is not a variable's name: letters, digits and"),
        ("-x A\x01=1 train.py", "-x 'A\\x01=1': 'A\\x01' is not a variable's name"),
        ("-x A\0B=1 train.py", "-x 'A\\x00B=1': 'A\\x00B' is not a variable's name"),
        ("-x A=1\0 train.py", "-x 'A=1\\x00': the value of A holds a NUL character"),
        ("-x A\udcff train.py", "-x 'A\\udcff': 'A\\udcff' is not a variable's name"),
        ("-x A=\ud800 train.py", "-x 'A=\\ud800': the value of A has characters that this locale cannot write"),
        ("-x PMRUN_RANK=1 train.py", "-x 'PMRUN_RANK=1': PMRUN_RANK is what pmrun tells each rank"),
        ("-x LOCAL_RANK=1 train.py", "-x 'LOCAL_RANK=1': LOCAL_RANK is what pmrun tells each rank"),
        ("--cwd nowhere train.py", "--cwd nowhere: {here}/nowhere does not exist; name a directory or create it"),
        ("--cwd train.py train.py", "--cwd train.py: {here}/train.py is not a directory"),
        ("--output-dir train.py train.py", "--output-dir train.py: {here}/train.py is not a directory"),
        ("--output-dir /proc/no/logs train.py", "--output-dir: cannot create /proc/no/logs"),
        ("--json-events folder train.py", "--json-events folder: {here}/folder is a directory; name a file in it"),
        ("--json-events no/e.json train.py", "--json-events no/e.json: there is no directory {here}/no"),
        ("x.py", "cannot find script 'x.py' (looked in {here}); check the name, or the folder with --cwd"),
        ("trian.py", "cannot find script 'trian.py' (looked in {here}); did you mean train.py?"),
        ("no/x.py", "cannot find script 'no/x.py' (looked in {here}); there is no folder {here}/no"),
        ("no-such-program", "cannot find script 'no-such-program' (looked in {here})"),
        ("folder", "'folder' is a directory without __main__.py; name a script in it"),
        ("binary", "'binary' is a program, not a Python script; write: pmrun [options] -- ./binary"),
        ("--", "no program after '--'; write: pmrun [options] -- program args..."),
        ("-- no-such-program", "cannot find program 'no-such-program' on PATH; check the name or give its path"),
        ("-- train.py", "cannot find program 'train.py' on PATH; for the file in {here} write ./train.py"),
        ("-- ./train.py", "'./train.py' may not be executed; try: chmod +x {here}/./train.py, or leave out '--'"),
        ("-- ./no", "cannot find program './no' (looked in {here}); check the path"),
        ("-- ./folder", "'./folder' is a directory; name a program in it"),
        ("-m", "no module after '-m'; write: pmrun [options] -m package.module args..."),
        ("-m no_such_module", "cannot find module 'no_such_module' (looked in {here} and "),
        ("-m json.no_such", "cannot find module 'json.no_such'"),
        ("-m train.py", "cannot find module 'train.py': 'train' is a module, not a package"),
        ("-m json", "'json' is a package without __main__.py; name a module in it: -m json.module"),
        ("-m ./train.py", "'./train.py' is not a module's name; leave out -m: pmrun ./train.py"),
        ("--completion csh", "--completion csh: no completion for 'csh' (did you mean zsh?); choose one of: bash, zsh"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(arguments: str, line: str, refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(Path("/bin/true").read_bytes())
    said = refusal(*arguments.split())
    assert said.startswith(line.replace("{here}", str(tmp_path)))


def test_a_name_with_a_space_is_refused(refusal: Callable[..., str]) -> None:
    assert refusal("-x", "A B=1", "train.py").startswith("-x 'A B=1': 'A B' is not a variable's name")
    assert refusal("-x", "", "train.py").startswith("-x '': write NAME=VALUE")


def test_python_m_pmrun_is_the_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "pmrun", *arguments]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    (tmp_path / "train.py").write_text("import os, sys; print(os.environ['PMRUN_RANK'], *sys.argv); sys.exit(3)")
    code, out, err = run("-n", "1", "--no-tag", "train.py", "--help")
    assert (code, out) == (3, "0 train.py --help\n")
    assert err.startswith("pmrun: rank 0 failed first: exit code 3")
    assert run("-n", "0", "train.py")[0] == ExitCode.USAGE
    assert run("--version")[1].startswith("pmrun ")
    assert json.loads(run("-n", "2", "--dry-run", "-m", "train")[1])["world_size"] == 2


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from pmrun.launcher.cli import main; sys.exit(main(['x.py']))"
    run = subprocess.run([sys.executable, "-c", code], cwd=gone, text=True, capture_output=True, check=False)
    assert run.returncode == ExitCode.USAGE
    assert run.stderr == "pmrun: the current directory does not exist any more; cd to another one\n"


# ---- pages ------------------------------------------------------------------------------------------------


def test_help_names_every_option_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-n", "3", "--help"]) == 0
    page = capsys.readouterr().out
    for option in OPTIONS:
        assert (f"-{option.name}" in page) or (f"--[no-]{option.name}" in page)
    assert max(map(len, page.splitlines())) <= 100
    assert "\033" not in page


@pytest.mark.parametrize("arguments", [["--help"], ["--completion", "bash"], ["--dry-run", "-n", "2", "--", "true"]])
def test_a_page_that_cannot_be_written(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pmrun", *arguments]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.stderr == "pmrun: cannot write the standard output: No space left on device\n"
    assert run.returncode == ExitCode.OUTPUT_FAILED
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (ExitCode.OK, "")


def test_help_loads_no_heavy_module() -> None:
    code = (
        "import sys; from pmrun.launcher.cli import main; main(['--help']); "
        "heavy = {'asyncio', 'click', 'dataclasses', 'inspect', 'msgspec', 'numpy', 'rich', 'subprocess', 'zmq',"
        " 'pmrun._native'} & set(sys.modules); sys.exit(f'loaded: {sorted(heavy)}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from pmrun.launcher.cli import main; sys.exit(main(['--help']))"
    read_end, write_end = os.pipe()
    os.close(read_end)
    with subprocess.Popen([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, text=True) as process:
        os.close(write_end)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
