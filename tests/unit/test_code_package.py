# SPDX-License-Identifier: Apache-2.0
"""What is unpacked is what was packed, or nothing is; and the words in which that is told."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pmrun.errors import LaunchError, UsageError
from pmrun.launcher.code_package.archive import SUFFIX, pack
from pmrun.launcher.code_package.place_directory import Directory
from pmrun.launcher.code_package.unpack import PREFIX, unpacked

Tree = dict[bytes, "tuple[bytes, bool] | bytes"]  # by name: content and whether executable, or a link's target
IGNORED = (b".git", b".gitignore", b".pmrunignore", b"__pycache__", b"pyvenv.cfg", b".", b"..")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The directory that both ends see."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train.py").write_text("print('here')\n")
    return folder


@pytest.fixture(autouse=True)
def nodes_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "of-the-node"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not os.listdir(folder)


def sent(root: Path, store: Path) -> str:
    """Pack a directory and keep it; returns its address."""
    place = Directory(str(store))
    with pack(str(root)) as package:
        place.keep(package)
        return place.address(package.digest)


def write_tree(root: bytes, tree: Tree) -> None:
    for name, content in tree.items():
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(content, bytes):
            os.symlink(content, path)
        else:
            with open(path, "wb") as file:
                file.write(content[0])
            os.chmod(path, 0o777 if content[1] else 0o600)


def read_tree(root: bytes) -> Tree:
    tree: Tree = {}
    for folder, folders, names in os.walk(root):
        for name in (*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))):
            path = os.path.join(folder, name)
            within = os.path.relpath(path, root)
            if os.path.islink(path):
                tree[within] = os.readlink(path)
            else:
                with open(path, "rb") as file:
                    tree[within] = file.read(), bool(os.stat(path).st_mode & stat.S_IXUSR)
    return tree


# ---- there and back ---------------------------------------------------------------------------------------

parts = st.binary(min_size=1, max_size=120).filter(
    lambda part: b"/" not in part and b"\0" not in part and part not in IGNORED
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree: Tree = {}
    folders = [b"", *(part + b"/" for part in draw(st.lists(parts, max_size=3)))]
    folders += [folder + draw(parts) + b"/" for folder in folders[1:]]
    folders += [folders[-1] + draw(parts) + b"/"] if len(folders) > 1 else []
    for name in draw(st.lists(st.builds(bytes.__add__, st.sampled_from(folders), parts), min_size=1, max_size=8)):
        taken = any(other == name or other.startswith(name + b"/") or name.startswith(other + b"/") for other in tree)
        if not taken and name + b"/" not in folders:
            tree[name] = draw(st.one_of(parts, st.tuples(st.binary(max_size=2000), st.booleans())))
    return tree


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees())
def test_there_and_back(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as above:
        first, second, place = (os.path.join(above, name) for name in ("first", "second", "place"))
        os.mkdir(place)
        os.mkdir(first)
        os.mkdir(second)
        write_tree(os.fsencode(first), tree)
        if not tree:
            return
        address = sent(Path(first), Path(place))
        with unpacked(address) as folder:
            assert read_tree(os.fsencode(folder)) == tree
        write_tree(os.fsencode(second), dict(reversed(tree.items())))
        with pack(second) as package:
            assert address.endswith(f"/{package.digest}{SUFFIX}")


def test_a_hash_for_all_times_and_pythons(code: Path) -> None:
    """What it is made of never changes: packages that are there already would be sent anew by every user."""
    (code / "pkg").mkdir()
    (code / "pkg" / ("long" * 30)).write_bytes(bytes(range(256)) * 9)
    (code / "pkg" / "ünï").write_text("x")
    (code / "run.sh").write_text("#!/bin/sh\n")
    (code / "run.sh").chmod(0o711)
    (code / "to").symlink_to("pkg/ünï")
    os.utime(code / "train.py", (5, 5))
    with pack(str(code)) as package:
        tar = gzip.decompress(package.file.read())
        assert (package.count, package.tar_bytes) == (5, len(tar))
        assert package.digest == hashlib.sha256(tar).hexdigest()
        assert package.digest == "13668c1cf26ffce70e352c703a9b01c8c2c300c37c8dbd8d4e5ec33714d21ecc"


def test_files_are_as_new_and_of_whoever_unpacks(code: Path, store: Path) -> None:
    os.utime(code / "train.py", (5, 5))
    (code / "train.py").chmod(0o4711)
    with unpacked(sent(code, store)) as folder:
        found = os.stat(os.path.join(folder, "train.py"))
        assert found.st_mtime > 1e9 and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o755
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


# ---- what is not packed -----------------------------------------------------------------------------------


def test_too_large(code: Path) -> None:
    for name, size in {
        "data/raw/train.npy": 900_000,
        "data/raw/x": 10_000,
        "model/a": 200_000,
        "model/b": 200_000,
    }.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_bytes(bytes(size))
    with pytest.raises(UsageError) as caught:
        pack(str(code), 1 << 20)
    assert str(caught.value) == (
        f"--code {code}: the code is more than 1 MiB (--code-limit); largest: data/raw/train.npy (879 KiB), "
        "model/ (391 KiB), train.py (14 bytes); name in .pmrunignore what the nodes do not need, or raise the limit"
    )


def test_too_large_by_many_small_ones(code: Path) -> None:
    """Of which each takes 512 bytes of headers."""
    for number in range(200):
        (code / str(number)).touch()
    with pytest.raises(UsageError, match=r"more than 100 KiB"):
        pack(str(code), 100 << 10)


def test_nothing_to_pack(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"no file in it is left to pack"):
        pack(str(tmp_path))


@pytest.mark.parametrize("target", ["/etc", "../other", "down/../../other", "across/../..", "."])
def test_links_that_lead_out(code: Path, target: str) -> None:
    (code / "across").symlink_to(".")
    (code / "link").symlink_to(target)
    if target == ".":
        pack(str(code)).close()
    else:
        with pytest.raises(UsageError, match=rf"the link {code}/link -> {target} leads out of the directory"):
            pack(str(code))


def test_a_file_that_never_holds_still() -> None:
    """The kernel says that these are empty, and then has something to read."""
    with pytest.raises(UsageError, match=r"/proc/sys/kernel/random/\w+ changes while it is read"):
        pack("/proc/sys/kernel/random")


def test_what_may_not_be_read(code: Path) -> None:
    """By somebody who is not root, or by root without its rights."""
    program = (
        "import sys; from pmrun.errors import UsageError; from pmrun.launcher.code_package.archive import pack\n"
        "for root in sys.argv[1:]:\n"
        "    try: pack(root)\n"
        "    except UsageError as error: print(error)\n"
    )
    (code / "a" / "closed").mkdir(parents=True)
    (code / "b").mkdir()
    (code / "b" / "secret").touch(0o000)
    subprocess.run(["git", "init", "-q", code / "c"], check=True)
    (code / "c" / "closed").mkdir()
    for closed in ("a/closed", "c/closed"):
        (code / closed).chmod(0o000)
    mortal = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    words = [*mortal, sys.executable, "-c", program, *(str(code / name) for name in "abc")]
    done = subprocess.run(words, text=True, capture_output=True, check=False)
    for closed in ("a/closed", "c/closed"):
        (code / closed).chmod(0o700)
    assert done.stdout.splitlines() == [
        f"--code: cannot list {code}/a/closed/: Permission denied: make it readable, or remove it",
        f"--code: cannot read {code}/b/secret: Permission denied: make it readable, or name it in .pmrunignore",
        f"--code: in {code}/c, git says: warning: could not open directory 'closed/': Permission denied: make it readable, "
        "or remove it",
    ], done.stderr


# ---- what is not unpacked ---------------------------------------------------------------------------------


def named_by_its_hash(store: Path, tar: bytes) -> str:
    path = store / (hashlib.sha256(tar).hexdigest() + SUFFIX)
    path.write_bytes(gzip.compress(tar))
    return str(path)


def refused(address: str, **limit: int) -> str:
    with pytest.raises(LaunchError) as caught, unpacked(address, **limit):
        pass
    return str(caught.value)


def test_another_package_than_was_submitted(code: Path, store: Path) -> None:
    address = sent(code, store)
    packed = Path(address).read_bytes()
    other = named_by_its_hash(store, b"another")
    Path(address).write_bytes(Path(other).read_bytes())
    assert (
        f"is not the one that was submitted: its SHA-256 is {hashlib.sha256(b'another').hexdigest()}; it was"
        in refused(address)
    )
    for damaged in (packed[:-9], packed[:40] + b"\0\0\0\0" + packed[44:], packed + b"x", b"", b"no gzip"):
        Path(address).write_bytes(damaged)
        assert f"{address} is not the one that was submitted: " in refused(address)


def test_more_than_the_limit(store: Path) -> None:
    bomb = named_by_its_hash(store, bytes(3 << 20))
    assert "is larger than 1 MiB (--code-limit); it was not unpacked" in refused(bomb, limit_bytes=1 << 20)
    Path(bomb).write_bytes(os.urandom(3 << 20))
    assert "is larger than 1 MiB (--code-limit); it was not unpacked" in refused(bomb, limit_bytes=1 << 20)


def test_nothing_is_written_outside(store: Path, nodes_temporary_files: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.addfile(tarfile.TarInfo("../outside"))
    assert "cannot be unpacked: '../outside' would be extracted to" in refused(named_by_its_hash(store, tar.getvalue()))
    assert "cannot be unpacked: " in refused(named_by_its_hash(store, b"no tar" * 200))


def test_addresses(store: Path, code: Path) -> None:
    gone = f"{store}/{'0' * 64}{SUFFIX}"
    assert refused(gone) == f"cannot read the code package {gone}: No such file or directory: is its volume mounted?"
    for wrong in ("code.tar.gz", "s3://bucket/code.tar.gz", f"{store}/{'0' * 63}{SUFFIX}", "/x/" + "0" * 64):
        with pytest.raises(UsageError, match=r"on a node this is a package's address"), unpacked(wrong):
            pass
    with (
        pytest.raises(UsageError, match=r"ftp://host: no place for ftp:// is known"),
        unpacked(f"ftp://host/{'0' * 64}{SUFFIX}"),
    ):
        pass
    with (
        pytest.raises(UsageError, match=r"nodes look elsewhere for a relative path"),
        unpacked(f"a/{'0' * 64}{SUFFIX}"),
    ):
        pass


def test_a_full_disk(code: Path, store: Path, nodes_temporary_files: Path) -> None:
    """A disk of 256 KiB, in a namespace that is gone with the process: too small for what is unpacked, and for the archive."""
    (code / "zeros").write_bytes(bytes(1 << 20))
    addresses = [sent(code, store)]
    (code / "noise").write_bytes(os.urandom(1 << 20))
    addresses.append(sent(code, store))
    program = (
        "import os, sys; from pmrun.errors import LaunchError; from pmrun.launcher.code_package.unpack import unpacked\n"
        "for address in sys.argv[1:]:\n"
        "    try:\n"
        "        with unpacked(address): print('unpacked')\n"
        "    except LaunchError as error: print(error, os.listdir(os.environ['TMPDIR']))\n"
    )
    mounted = f'mount -t tmpfs -o size=256k none "{nodes_temporary_files}" && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", program, *addresses],
        env={**os.environ, "TMPDIR": str(nodes_temporary_files)}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    if "unshare: " in done.stderr or "mount: " in done.stderr:
        pytest.skip(f"no namespace with a disk of its own: {done.stderr.strip()}")
    for line, address in zip(done.stdout.splitlines(), addresses, strict=True):
        assert line.startswith(
            f"cannot unpack the code package {address} in {nodes_temporary_files}: No space left on device; "
        )
        assert line.endswith(" left; TMPDIR chooses another directory []")


# ---- the directory ----------------------------------------------------------------------------------------


def test_what_a_killed_job_left_goes_with_the_next(code: Path, store: Path, nodes_temporary_files: Path) -> None:
    address = sent(code, store)
    left = nodes_temporary_files / f"{PREFIX}left"
    left.mkdir()
    (left / "file").touch()
    with unpacked(address) as first, unpacked(address) as second:
        assert sorted(os.listdir(nodes_temporary_files)) == sorted(map(os.path.basename, (first, second)))
        os.mkdir(os.path.join(first, "made by the job"))
