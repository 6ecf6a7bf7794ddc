# SPDX-License-Identifier: Apache-2.0
"""Options from the environment and from files: what is found, what goes over what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmrun import env
from pmrun.errors import UsageError
from pmrun.launcher import cli, config, options as opt
from pmrun.launcher.command_line import split
from pmrun.launcher.option import Values, parse_duration


def values(*arguments: str) -> Values:
    return cli.read_values(split(arguments))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project" / "deep"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_the_command_line_goes_over_the_environment_and_that_over_the_file(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "pmrun.toml").write_text('n = 2\ngrace = "1s"\ntimeout = 7\n')
    monkeypatch.setenv("PMRUN_GRACE", "2")
    monkeypatch.setenv("PMRUN_TIMEOUT", "8")
    found = values("--timeout", "9", "x.py")
    assert (found.get(opt.RANKS), found.get(opt.GRACE), found.get(opt.TIMEOUT)) == (2, 2.0, 9.0)


def test_variables_for_the_ranks_add_up_and_the_last_of_a_name_holds(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "pmrun.toml").write_text('[env]\nA = "file"\nB = 1\n')
    monkeypatch.setenv("PMRUN_ENV", "C='two words' A=variable")
    assert values("-x", "D=4", "x.py").get(opt.ENV) == (
        ("A", "file"), ("B", "1"), ("C", "two words"), ("A", "variable"), ("D", "4"),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["A=B", "", "A B", "A\\u0000", "A\\n"])
def test_a_key_that_is_no_variables_name_is_refused(here: Path, name: str) -> None:
    (here / "pmrun.toml").write_text(f'[env]\n"{name}" = 1\n')
    with pytest.raises(UsageError, match=r"pmrun\.toml: key 'env': '.*' is not a variable's name: letters, digits"):
        values("x.py")


def test_the_nearest_file_is_taken_alone(here: Path) -> None:
    (here.parent / "pmrun.toml").write_text("n = 3\ngrace = 1\n")
    assert values("x.py").get(opt.RANKS) == 3
    (here / "pyproject.toml").write_text('[project]\nname = "not-pmruns-business"\n')
    assert values("x.py").get(opt.RANKS) == 3
    (here / "pyproject.toml").write_text("[tool.pmrun]\nn = 4\n")
    found = values("x.py")
    assert (found.get(opt.RANKS), found.get(opt.GRACE)) == (4, opt.GRACE.default)
    (here / "pmrun.toml").write_text("n = 5\n")
    assert values("x.py").get(opt.RANKS) == 5


def test_every_type_of_value(here: Path) -> None:
    (here / "pmrun.toml").write_text(
        'n = "auto"\ntag = false\ntimestamp = true\nonly-ranks = [0, "2-3"]\nstdin = 1\nstart-timeout = 0.5\n'
        'env = ["A=1", "B=2"]\nmap-by = "core"\n'
    )
    found = values("x.py")
    assert found.get(opt.RANKS) is None
    assert (found.get(opt.TAG), found.get(opt.TIMESTAMP)) == (False, True)
    assert found.get(opt.ONLY_RANKS) == {0, 2, 3}
    assert (found.get(opt.STDIN), found.get(opt.START_TIMEOUT)) == (1, 0.5)
    assert found.get(opt.ENV) == (("A", "1"), ("B", "2"))
    assert found.get(opt.MAP_BY) == "core"


def test_a_switch_can_be_taken_back_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMRUN_TIMESTAMP", "yes")
    monkeypatch.setenv("PMRUN_TAG", "off")
    assert (values("x").get(opt.TIMESTAMP), values("x").get(opt.TAG)) == (True, False)
    again = values("--no-timestamp", "--tag", "x")
    assert (again.get(opt.TIMESTAMP), again.get(opt.TAG)) == (False, True)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMRUN_GRACE", "")
    assert values("x").get(opt.GRACE) == 5.0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("grce = 5", "{file}: unknown key 'grce' (did you mean grace?); see pmrun --help"),
        ("help = true", "{file}: unknown key 'help'"),
        ("dry-run = true", "{file}: unknown key 'dry-run'"),
        ("start_timeout = 5", "{file}: unknown key 'start_timeout' (did you mean start-timeout?)"),
        ("grace = 'soon'", "{file}: key 'grace': a time is a number of seconds, or has a unit"),
        (
            "grace = true",
            "{file}: key 'grace': true or false does not fit; it takes a whole number, a number or a string",
        ),
        ("n = [1]", "{file}: key 'n': an array does not fit; it takes a whole number or a string"),
        ("n = 2.0", "{file}: key 'n': a number does not fit; it takes a whole number or a string"),
        ("tag = 1", "{file}: key 'tag': a whole number does not fit; it takes true or false"),
        ("cwd = 3", "{file}: key 'cwd': a whole number does not fit; it takes a string"),
        ("transport = ['tcp']", "{file}: key 'transport': an array does not fit; it takes a string"),
        ("only-ranks = [[0], 1]", "{file}: key 'only-ranks': an array does not fit; it takes a whole number, a string"),
        ("hosts = {a = 8}", "{file}: key 'hosts': a table does not fit; it takes a string or an array"),
        ("hosts = ['a', 8]", "{file}: key 'hosts': a whole number does not fit; it takes a string or an array"),
        ("env = ['A=1', 2]", "{file}: key 'env': a whole number does not fit; it takes a string, an array or a table"),
        ("env = {A = [1]}", "{file}: key 'env': an array does not fit; it takes a string, a whole number or a number"),
        ("env = {A = true}", "{file}: key 'env': true or false does not fit; it takes a string, a whole number or"),
        ("n = 0", "{file}: key 'n': the number of ranks is a whole number from 1 on"),
        ("n = 2024-01-01", "{file}: key 'n': a date or time does not fit; it takes a whole number or a string"),
        ("grace = {a = 1}", "{file}: key 'grace': a table does not fit"),
        ("n = ", "{file} is not valid TOML: "),
        ("n = 1\nn = 2", "{file} is not valid TOML: "),
    ],
)
def test_a_wrong_file_is_named_with_its_key(text: str, line: str, here: Path) -> None:
    file = here / "pmrun.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        values("x.py")
    assert str(caught.value).startswith(line.replace("{file}", str(file)))
    assert "\n" not in str(caught.value)


def test_a_pmrun_that_is_no_table_is_refused(here: Path) -> None:
    (here / "pyproject.toml").write_text("[tool]\npmrun = 3\n")
    with pytest.raises(UsageError, match=r"'tool\.pmrun' is not a table"):
        values("x.py")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("PMRUN_N", "many", "PMRUN_N='many' in the environment: the number of ranks is"),
        ("PMRUN_TAG", "perhaps", "PMRUN_TAG='perhaps' in the environment: a switch is 'true' or 'false'"),
        ("PMRUN_ENV", "A='", 'PMRUN_ENV="A=\'" in the environment: No closing quotation'),
    ],
)
def test_a_wrong_variable_is_named(name: str, text: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UsageError) as caught:
        values("x.py")
    assert str(caught.value).startswith(line)


# A pmrun inside a rank sends its data as the gang around it does, unless told otherwise; ranks of another launcher meet
# by what nodes that are started by hand meet by.
BOTH = {
    *(env.TRANSPORT, env.REPRODUCIBLE, env.ENCRYPT, env.SECRET_FILE, env.MAIN, env.INTERFACE, env.PDB_ON_ERROR),
}


def test_no_options_variable_is_one_that_a_rank_sees() -> None:
    ranks = {value for name, value in vars(env).items() if name.isupper() and name != "OPTION_PREFIX"}
    assert ranks & {option.variable for option in opt.OPTIONS if option.settable} == BOTH


def test_settings_are_those_of_the_table_that_may_be_set() -> None:
    environ = {option.variable: "1" for option in opt.OPTIONS if option.settable}
    found = [setting.option.name for setting in config.from_environment(environ)]
    assert found == [option.name for option in opt.OPTIONS if option.settable]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("PMRUN_TIMEOT", "unknown variable PMRUN_TIMEOT in the environment (did you mean PMRUN_TIMEOUT?); unset it"),
        ("PMRUN_KERNEL", "unknown variable PMRUN_KERNEL in the environment (did you mean PMRUN_KERNELS?)"),
        ("PMRUN_XYZZY", "unknown variable PMRUN_XYZZY in the environment; unset it"),
        ("PMRUN_DRY_RUN", "unknown variable PMRUN_DRY_RUN in the environment"),
    ],
)
def test_a_variable_that_pmrun_does_not_know_is_refused(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    with pytest.raises(UsageError) as caught:
        values("x.py")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv(name, "")
    assert values("x.py").get(opt.TIMEOUT) is None


def test_variables_of_ranks_and_of_the_build_are_no_options() -> None:
    others = {value: "1" for name, value in vars(env).items() if name.isupper() and name != "OPTION_PREFIX"}
    others = {name: value for name, value in others.items() if name not in BOTH}
    assert {"PMRUN_RANK", "PMRUN_ALGORITHM", "PMRUN_WERROR"} < set(others)
    assert config.from_environment({**others, "RANDOM": "1"}) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0),
        ("0.25", 0.25),
        ("1e2", 100.0),
        ("250ms", 0.25),
        ("90s", 90.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("0", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5d", "5 parsecs", "-5", "inf", "nan", "5sm", "m5", "1e99"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a time is a number of seconds"):
        parse_duration(text)
