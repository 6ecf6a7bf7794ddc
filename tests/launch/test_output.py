# SPDX-License-Identifier: Apache-2.0
"""Output end to end: whole lines, prompts, bytes unchanged, bounded memory, a reader that stalls or leaves."""

import collections
import os
import re
import select
import subprocess
import sys

PYTHON = sys.executable
HEAD = "import os, signal, sys; rank = int(os.environ['PMRUN_RANK'])\n"


def test_lines_never_tear(launch):
    ranks, lines = 16, 2000
    body = (
        HEAD
        + f"""
for i in range({lines}):
    os.write(1 + i % 2, b'%d:%d:' % (rank, i))
    os.write(1 + i % 2, b'x' * (i * 7 % 300) + b'|' + b'\\n')
"""
    )
    job = launch([PYTHON, "-c", body], ranks, stderr=subprocess.STDOUT)
    rc, out, _ = job.finish()
    assert rc == 0
    seen = {rank: [] for rank in range(ranks)}
    for line in out.decode().splitlines():
        match = re.fullmatch(r"\[ ?(\d+)\] (\d+):(\d+):(x*)\|", line)
        assert match, line
        assert match[1] == match[2]
        assert len(match[4]) == int(match[3]) * 7 % 300
        seen[int(match[1])].append(int(match[3]))
    for numbers in seen.values():
        assert sorted(numbers) == list(range(lines))
        assert [n for n in numbers if n % 2] == sorted(n for n in numbers if n % 2)


def test_prompt_without_newline_appears(launch):
    body = HEAD + "sys.stdout.write('name? '); sys.stdout.flush(); print('hello', input())"
    read, write = os.pipe()
    job = launch([PYTHON, "-c", body], 1, source=read)
    os.close(read)
    job.read_until(1, b"name? ")
    os.write(write, b"ann\n")
    os.close(write)
    rc, out, _ = job.finish()
    assert (rc, out) == (0, b"[0] name? hello ann\n")


def test_broken_prompt_keeps_lines_apart(launch):
    body = (
        HEAD
        + """
if rank == 0:
    sys.stdout.write('unfinished'); sys.stdout.flush()
    sys.stdin.read()
    print(' business')
else:
    sys.stdin.read()
    print('other')
"""
    )
    read, write = os.pipe()
    job = launch([PYTHON, "-c", body], 2, source=read)
    os.close(read)
    job.read_until(1, b"unfinished")
    os.close(write)
    rc, out, _ = job.finish()
    assert rc == 0
    assert out in (
        b"[0] unfinished\n[1] other\n[0]  business\n",
        b"[1] other\n[0] unfinished business\n",
        b"[0] unfinished business\n[1] other\n",
    )


def test_bytes_pass_unchanged_without_tag(launch):
    body = HEAD + "sys.stdout.buffer.write(bytes(range(256)) * 4096)"
    job = launch([PYTHON, "-c", body], 1, output={"tag": False})
    rc, out, _ = job.finish()
    assert rc == 0
    assert out == bytes(range(256)) * 4096


def test_very_long_lines(launch):
    body = HEAD + "sys.stdout.write(str(rank) * 700_000 + '\\n')"
    job = launch([PYTHON, "-c", body], 4)
    rc, out, _ = job.finish()
    assert rc == 0
    assert sorted(out.splitlines()) == [b"[%d] " % r + b"%d" % r * 700_000 for r in range(4)]


def test_timestamp_and_only_ranks(launch):
    job = launch(["sh", "-c", "echo hi $PMRUN_RANK"], 12, output={"timestamp": True, "only_ranks": [3, 11]})
    rc, out, _ = job.finish()
    lines = sorted(out.decode().splitlines(), key=lambda line: line[13:])
    assert rc == 0
    assert len(lines) == 2
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} \[ 3\] hi 3", lines[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} \[11\] hi 11", lines[1])


def test_files_per_rank(launch, tmp_path):
    folder = tmp_path / "a" / "b"
    script = "echo out $PMRUN_RANK; echo err >&2; printf no-newline"
    job = launch(["sh", "-c", script], 3, output={"directory": str(folder)})
    rc, out, _ = job.finish()
    assert rc == 0
    assert out.count(b"out") == 3
    for rank in range(3):
        assert (folder / f"rank-{rank}.out").read_text() == f"out {rank}\nno-newline"
        assert (folder / f"rank-{rank}.err").read_text() == "err\n"


def test_files_of_an_earlier_job_with_more_ranks_go(launch, tmp_path):
    assert launch(["echo", "hi"], 12, output={"directory": str(tmp_path)}).finish()[0] == 0
    ours = {f"rank-{rank}.{stream}" for rank in range(12) for stream in ("out", "err")}
    assert {path.name for path in tmp_path.iterdir()} == ours
    others = {"rank-03.out", "rank-7.txt", "my-rank-7.out", "rank-9.out.gz", "notes", "rank-77.out", "rank-78.err"}
    for name in others - {"rank-77.out", "rank-78.err"}:
        (tmp_path / name).write_text("kept")
    (tmp_path / "rank-77.out").mkdir()
    (tmp_path / "rank-78.err").symlink_to("notes")
    assert launch(["echo", "ho"], 2, output={"directory": str(tmp_path)}).finish()[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == others | {
        "rank-0.out", "rank-0.err", "rank-1.out", "rank-1.err"
    }  # fmt: skip
    assert (tmp_path / "rank-1.out").read_text() == "ho\n"
    assert (tmp_path / "notes").read_text() == "kept"


def test_output_directory_that_cannot_be_made(launch, tmp_path):
    (tmp_path / "file").write_text("")
    job = launch(["echo", "hi"], 2, output={"directory": str(tmp_path / "file" / "x")})
    rc, out, err = job.finish()
    assert rc == 0
    assert out.count(b"hi") == 2
    assert b"pmrun: --output-dir: Not a directory" in err and err.count(b"\n") == 1


def test_full_disk_keeps_the_terminal(launch, tmp_path):
    os.symlink("/dev/full", tmp_path / "rank-0.out")
    job = launch(["echo", "hi"], 2, output={"directory": str(tmp_path)})
    rc, out, err = job.finish()
    assert rc == 0
    assert out.count(b"hi") == 2
    assert b"No space left on device: the file of rank 0 ends here" in err


def test_stalled_reader_costs_no_memory_and_nothing_is_lost(launch, launched):
    per_rank = 20 << 20
    body = (
        HEAD
        + f"""
print('ready', flush=True)
line = (str(rank) * 99 + '\\n').encode()
for _ in range({per_rank} // 100): sys.stdout.buffer.write(line)
"""
    )
    job = launch([PYTHON, "-c", body], 8)
    job.read_until(8)
    watched = (job.pid, job.agent())
    before = [launched.memory_bytes(pid) for pid in watched]
    launched.until_idle(job.everything(), "every rank is stopped by back-pressure")
    peaks = [launched.memory_bytes(pid, "VmHWM") for pid in watched]
    out = bytearray(job.read_until(8))
    while data := os.read(job.process.stdout.fileno(), 1 << 20):
        out += data
        peaks = [max(peak, launched.memory_bytes(pid, "VmHWM")) for pid, peak in zip(watched, peaks, strict=True)]
    assert job.process.wait(30) == 0
    assert all(peak - then <= 32 << 20 for peak, then in zip(peaks, before, strict=True)), (peaks, before)
    lines = collections.Counter(bytes(out).splitlines())
    assert sum(lines.values()) == 8 + 8 * (per_rank // 100)
    for rank in range(8):
        assert lines[b"[%d] " % rank + b"%d" % rank * 99] == per_rank // 100


def test_reader_that_leaves(launch):
    read, write = os.pipe()
    job = launch(["yes"], 4, stdout=write)
    os.close(write)
    assert os.read(read, 4).startswith(b"[")
    os.close(read)
    rc, _, err = job.finish()
    assert (rc, err) == (141, b"")
    job.assert_nothing_left(0)


def test_reader_that_leaves_a_silent_job(launch):
    read, write = os.pipe()
    job = launch(["sleep", "1000"], 2, stdout=write)
    os.close(write)
    os.close(read)
    assert job.finish()[0] == 141


def test_shared_descriptors_keep_their_flags(launch):
    import fcntl

    read, write = os.pipe()
    before = fcntl.fcntl(write, fcntl.F_GETFL)
    job = launch(["echo", "hi"], 2, stdout=write)
    job.process.wait(30)
    assert fcntl.fcntl(write, fcntl.F_GETFL) == before
    os.close(write)
    assert len(os.read(read, 100)) == 14
    os.close(read)


def test_terminal(launch):
    import pty

    ours, theirs = pty.openpty()
    job = launch(["sh", "-c", "printf prompt; echo line >&2"], 1, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            data = os.read(ours, 1000)
        except OSError:
            break
        if not data:
            break
        seen += data
    os.close(ours)
    assert job.process.wait(30) == 0
    assert b"prompt\r\n" in seen or seen.endswith(b"prompt")
    assert b"\x1b[31m[0] \x1b[0m" in seen, "coloured on a terminal"


def test_full_disk_under_the_standard_output(launch):
    fd = os.open("/dev/full", os.O_WRONLY)
    job = launch(["yes"], 2, stdout=fd)
    os.close(fd)
    rc, _, err = job.finish()
    assert rc == 74
    assert err == b"pmrun: cannot write the standard output: No space left on device\n"
    job.assert_nothing_left(0)


def test_stalled_reader_after_the_end_costs_no_time(launch, launched):
    read, write = os.pipe()
    job = launch([PYTHON, "-c", HEAD + "os.write(2, b'z' * 99999 + b'\\n'); os._exit(5)"], 2, stderr=write)
    os.close(write)
    launched.until(lambda: not job.ranks(), "the gang is over while nobody reads")
    launched.until_idle([job.pid], "pmrun waits without spinning")
    out = b""
    while data := os.read(read, 65536):
        out += data
    os.close(read)
    assert job.process.wait(30) == 5
    assert out.count(b"z" * 99999) == 2
    assert b"failed first: exit code 5" in out
    job.assert_nothing_left(0)
