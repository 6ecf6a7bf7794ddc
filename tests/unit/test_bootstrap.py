# SPDX-License-Identifier: Apache-2.0
"""What an agent is told first, and what goes along from the launcher's environment."""

import os

import msgspec
import pytest

from pmrun import wire
from pmrun.errors import LaunchError
from pmrun.launcher import bootstrap, cli
from pmrun.launcher.carried import carried_environment

TOLD = bootstrap.Bootstrap(wire.VERSION, "1.0", b"s" * 32, 3, (("::1", 7),), 60.0, None, ((b"A", b"\xff\n"),))


def read(data):
    """What an agent makes of these bytes and their end."""
    read_fd, write_fd = os.pipe()
    try:
        os.write(write_fd, data)
        os.close(write_fd)
        return bootstrap.read(read_fd)
    finally:
        os.close(read_fd)


def test_it_survives_the_pipe():
    assert read(bootstrap.pack(TOLD)) == TOLD


@pytest.mark.parametrize("cut", [0, 3, 4, 20])
def test_an_end_in_the_middle(cut):
    with pytest.raises(LaunchError, match="ended early"):
        read(bootstrap.pack(TOLD)[:cut])


@pytest.mark.parametrize("data", [b"\x05\0\0\0hello", b"\x01\0\0\0\xc0", b"\xff\xff\xff\xffx", b"\x02\0\0\0\x91\x02"])
def test_what_is_not_from_pmrun(data):
    with pytest.raises(LaunchError) as caught:
        read(data)
    assert "standard input of `pmrun agent`" in str(caught.value) and "\n" not in str(caught.value)


def test_another_version_is_named_whatever_follows():
    data = msgspec.msgpack.encode([wire.VERSION + 1, "9.9", {"quite": "different"}])
    with pytest.raises(LaunchError, match=rf"\(protocol {wire.VERSION}\), pmrun 9.9 \(protocol {wire.VERSION + 1}\)"):
        read(len(data).to_bytes(4, "little") + data)


def test_the_command_says_who_starts_it(capsys):
    assert cli.main(["agent", "--help"]) == 0
    assert "start the same command once on each node" in capsys.readouterr().out


def test_a_script_may_have_a_commands_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("print('mine')")
    assert cli.main(["--dry-run", "./secret"]) == 0
    assert cli.main(["--dry-run", "secret"]) == 0, "the name counts as the first word only"
    assert capsys.readouterr().out.count('"backend": "local"') == 2


def test_what_goes_along():
    environ = {
        b"PATH": b"/bin", b"VIRTUAL_ENV": b"/v", b"WANDB_KEY": b"k", b"HOME": b"/h", b"SSH_AUTH_SOCK": b"/s", b"_": b"x",
        b"XDG_RUNTIME_DIR": b"/r", b"SLURM_JOB_ID": b"1", b"PMRUN_KERNELS": b"avx2", b"LANG": b"C", b"TERM": b"xterm",
        b"OMP_NUM_THREADS": b"3", b"BASH_FUNC_f%%": b"() { :; }",
    }  # fmt: skip
    names = [name for name, _ in carried_environment(environ)]
    assert names == [b"LANG", b"OMP_NUM_THREADS", b"PATH", b"PMRUN_KERNELS", b"VIRTUAL_ENV", b"WANDB_KEY"]
