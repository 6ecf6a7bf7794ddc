# SPDX-License-Identifier: Apache-2.0
"""Keys follow from the secret alone, and a secret file that others could use is refused."""

import os

import pytest

from pmrun.errors import UsageError
from pmrun.launcher import cli, keys
from pmrun.secret import read_secret


def test_hkdf_is_that_of_rfc_5869():
    """Test case 1 of its appendix."""
    made = keys.hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert made.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


def test_labels_secrets_and_attempts_give_different_keys():
    one, two = b"1" * 32, b"2" * 32
    found = [keys.derive(one, keys.control_label(node)) for node in range(-1, 3)]
    found += [keys.derive(two, keys.control_label(0)), keys.data_key(one, 0), keys.data_key(one, 1)]
    assert len(set(found)) == len(found) and all(len(key) == 32 for key in found)
    assert keys.data_key(one, 0) == keys.data_key(one, 0)


def test_the_main_port_is_the_secrets_own():
    ports = {keys.main_port(bytes([number]) * 32) for number in range(64)}
    assert len(ports) > 50 and all(20000 <= port < 32000 for port in ports)


def test_a_secret_is_made_and_read(tmp_path, capsys):
    path = tmp_path / "job.key"
    assert cli.main(["secret", str(path)]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read_secret(str(path), "--secret-file")) == 65
    assert cli.main(["secret", str(path)]) == 2
    assert "exists; remove it first" in capsys.readouterr().err
    assert cli.main(["secret", str(tmp_path / "no" / "such")]) == 2
    assert cli.main(["secret"]) == 2
    assert cli.main(["secret", "--help"]) == 0


def refusal(path):
    with pytest.raises(UsageError) as caught:
        read_secret(str(path), "--secret-file")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_bad_secret_files_are_refused(tmp_path):
    path = tmp_path / "key"
    assert "No such file" in refusal(path) and "pmrun secret" in refusal(path)
    path.write_bytes(b"x" * 31)
    path.chmod(0o600)
    assert "31 bytes, a secret has at least 32" in refusal(path)
    path.write_bytes(b"x" * 32)
    assert read_secret(str(path), "--secret-file") == b"x" * 32
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        assert f"mode {mode:04o}" in refusal(path) and "chmod 600" in refusal(path)
    path.chmod(0o600)
    path.write_bytes(b"x" * 70000)
    assert "at most" in refusal(path)
    assert "not a regular file" in refusal(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert "not a regular file" in refusal(fifo)
