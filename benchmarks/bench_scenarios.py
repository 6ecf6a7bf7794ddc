# SPDX-License-Identifier: Apache-2.0
"""What becomes of four ranks in thirteen mishaps, under pmrun and under the peers' launchers: one table.

Every launcher runs the same program on a machine of its own (struck.py): each rank says who it is, then all meet in
allreduces of 1024 floats with pauses of 10 ms; then one mishap. Told are when all ranks were gone and when the command had
ended, its exit code, which ranks its words name, and what is left: what runs, listens or has a name. What does not end
within --patience-s counts as never. Invariant: of pmrun, each row says what must hold, and a row that does not hold makes
the exit code 1; of the others, nothing is judged.

    python benchmarks/bench_scenarios.py                                     # pmrun alone, about a minute
    python benchmarks/bench_scenarios.py --append --budget-s 80 --peers openmpi mpich gloo    # again and again, in slices
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import struck
from nodes import Layout
from peers import ENVIRONMENTS, HERE, PEERS, Contender
from struck import Field, Gang, Line

OUTPUT = HERE.parent / "build" / "bench" / "scenarios.jsonl"
KIND = "scenario"
RANKS = 4
STALL_S = 5.0  # in which nobody reads
PRINTED = 300_000_000  # bytes, by all ranks together
BETWEEN_S = 1.0  # from one Ctrl-C to the next
START_S = 30.0
FLOOD_MB = 64.0  # that pmrun or its agent may have, interpreter and all
COMMON = "import ctypes, os, signal, sys, time\nimport numpy as np\n"
PRELUDES = {
    "pmrun": "import pmrun as pm\nworld = pm.init()\n"
    "def meet(count=1024):\n    world.allreduce(np.ones(count, np.float32))\n",
    "mpi": "from mpi4py import MPI\nworld = MPI.COMM_WORLD\n"
    "def meet(count=1024):\n    world.Allreduce(MPI.IN_PLACE, np.ones(count, np.float32))\n",
    "gloo": "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\n"
    "class world:\n    rank = dist.get_rank()\n"
    "def meet(count=1024):\n    dist.all_reduce(torch.ones(count))\n",
}
BODY = f"""
BEFORE
{struck.HELLO}
for step in range(10):
    meet()
if world.rank == CULPRIT:
    say("ready")
    open("GO", "rb").read(1)
    say("dies", time.time())
    EVENT
while True:
    meet()
    time.sleep(0.01)
"""
IGNORES = "signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN)"
DAEMON = "if world.rank == 1 and os.fork() == 0:\n    os.setsid()\n    while True: signal.pause()"
FLOOD = f"sys.stdout.write(('x' * 99 + '\\n') * {PRINTED // RANKS // 100}); sys.exit()"


class Mishap(NamedTuple):
    """One row. What must hold of pmrun: its code, whether it names rank 1, and within how long all ends."""

    text: str
    code: int | None = None
    named: bool = True
    ended_s: float = 1.0
    event: str = ""  # what rank 1 does, at its own time
    before: str = ""  # what all ranks do at first
    strike: Callable[[Gang, dict[int, int]], None] | None = None
    options: tuple[str, ...] = ()  # of pmrun
    culprit: int = 1


def kill(number: int) -> Callable[[Gang, dict[int, int]], None]:
    return lambda _, pids: os.kill(pids[1], number)


def interrupt(times: int) -> Callable[[Gang, dict[int, int]], None]:
    def go(gang: Gang, _: dict[int, int]) -> None:
        pid = gang.launcher()
        os.kill(pid, signal.SIGINT)
        for _ in range(times - 1):
            if gang.wait(lambda: pid in gang.ended, BETWEEN_S):
                return
            os.kill(pid, signal.SIGINT)

    return go


def kill_launcher(gang: Gang, _: dict[int, int]) -> None:
    os.kill(gang.launcher(), signal.SIGKILL)


def kill_second_agent(gang: Gang, _: dict[int, int]) -> None:
    os.kill(gang.field.cluster["b"].agents()[1], signal.SIGKILL)


MISHAPS = {
    "killed": Mishap("`kill -9` of rank 1", 137, strike=kill(signal.SIGKILL)),
    "crash": Mishap("SIGSEGV in rank 1", 139, event="ctypes.string_at(0)"),
    "exit": Mishap("`sys.exit(3)` in rank 1", 3, event="sys.exit(3)"),
    "raise": Mishap("an exception in rank 1 that nobody catches", 1, event="raise ValueError('lost')"),
    "leave": Mishap("rank 1 does `os._exit(0)`, the others wait for it", None, event="os._exit(0)"),
    "launcher": Mishap("`kill -9` of the launcher", None, False, 0.5, strike=kill_launcher),
    "agent": Mishap("`kill -9` of agent 1 of 2, 2 ranks each", 76, False, 5.0, strike=kill_second_agent),
    "stop": Mishap(
        "SIGSTOP of rank 1; pmrun with `--hang-timeout 2`", 79, ended_s=5.0, strike=kill(signal.SIGSTOP),
        options=("--hang-timeout", "2", "--grace", "0"),
    ),
    "mismatch": Mishap("rank 1 calls allreduce with 7 elements instead of 1024", 1, event="meet(7)"),
    "interrupt": Mishap("Ctrl-C once, ranks ignore SIGINT and SIGTERM", 130, False, 6.0, before=IGNORES, strike=interrupt(1)),
    "interrupts": Mishap("Ctrl-C twice, 1 s apart, the same", 130, False, 2.0, before=IGNORES, strike=interrupt(2)),
    "daemon": Mishap(
        "rank 1 has a grandchild in its own session that holds stdout; `kill -9` of rank 1", 137, before=DAEMON,
        strike=kill(signal.SIGKILL),
    ),
    "flood": Mishap("300 MB of output while nobody reads for 5 s", 0, False, 60.0, before=FLOOD, culprit=-1),
}  # fmt: skip


# ---- who is struck ----------------------------------------------------------------------------------------


def contenders(field: Field, names: list[str]) -> dict[str, Contender]:
    """pmrun, and the first variant of each peer that is asked for; by the names of PEERS."""
    cores = os.cpu_count() or 1
    found = {"pmrun": Contender("pmrun", "", tuple(field.command(RANKS)), (), ("pmrun", ""))}
    for name in names:
        ENVIRONMENTS.require([name])
        found[name] = ENVIRONMENTS.contenders([name], RANKS, cores)[0]
    return found


def words_of(field: Field, who: Contender, key: str) -> list[str]:
    """The whole command of a mishap."""
    mishap = MISHAPS[key]
    words = {"BEFORE": mishap.before, "EVENT": mishap.event or "pass", "GO": field.fifo}
    culprit = mishap.culprit if mishap.event else -1
    script = field.script(COMMON + PRELUDES[who.binding[0]] + BODY, {**words, "CULPRIT": culprit})
    if who.name != "pmrun":
        return who.script(Path(script))
    return [*field.command(RANKS, *mishap.options, several=key == "agent"), script]


# ---- one mishap -------------------------------------------------------------------------------------------


def play(patience_s: float, everyone: dict[str, Contender], field: Field, how: str, seed: int) -> Line:
    """One mishap of one contender."""
    name, _, key = how.partition(": ")
    who, mishap = everyone[name], MISHAPS[key]
    begin = time.time()
    with struck.started(field, words_of(field, who, key), who.env) as gang:
        if key == "flood":
            found = flood(gang, patience_s)
        else:
            found = struck_by(gang, mishap, begin, patience_s)
        ended = gang.process.pid in gang.ended  # its output may be held by a process that it left
        found["left"] = gang.left() if ended else None
        found["code"] = gang.process.wait() if ended else None
        err = gang.err.decode(errors="replace")
        words = headline(err) if name == "pmrun" else err.rpartition("Root Cause")[2]  # which torchrun gives at the end
        found["names"] = [] if key == "flood" else names_in(words)
        found["problem"] = judge(key, found, err) if name == "pmrun" else ""
    return {"kind": KIND, "where": field.name, "seed": seed, "how": how, **found}


def struck_by(gang: Gang, mishap: Mishap, begin: float, patience_s: float) -> Line:
    """Let it happen once all ranks are there, and see all of it end, or not."""
    there = gang.wait(lambda: gang.has_ended() or len(gang.lines("rank")) == RANKS, START_S)
    start_s = time.time() - begin
    there = there and gang.wait(lambda: gang.has_ended() or not mishap.event or gang.lines("ready"), START_S)
    if not there or gang.has_ended():
        raise SystemExit(f"{mishap.text}: the gang did not start: {(gang.out + gang.err).decode(errors='replace')}")
    pids = gang.ranks()
    gang.watch(gang.all_processes())
    at = time.time()
    if mishap.event:
        at = gang.go()
    elif mishap.strike:
        mishap.strike(gang, pids)
    gang.wait(gang.all_ended, patience_s)
    return {"start_s": start_s, **gang.times(at, pids.values(), "rank 1 ")}


def flood(gang: Gang, patience_s: float) -> Line:
    """Nobody reads for a while; then all is read. The most memory that a process which is no rank had, in MB."""
    gang.wait(lambda: gang.has_ended(), 0.0)
    time.sleep(STALL_S)
    most = max(map(peak_mb, launchers(gang)))
    gang.wait(gang.has_ended, START_S + patience_s)
    return {"most_mb": most, "lost": PRINTED - len(gang.out), "gone_s": 0.0, "ended_s": 0.0, "clean_s": 0.0}


def launchers(gang: Gang) -> list[int]:
    """What runs beside the ranks: they alone run the script by its interpreter."""
    here = gang.field.cluster["a"].processes()
    script = str(gang.field.folder)
    return [pid for pid, words in here.items() if not re.match(rf"\S*python\S* (-u )?{re.escape(script)}", words)]


def peak_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0.0
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def plain(item: str) -> str:
    """What is left, without the numbers that differ each time."""
    return re.sub(r"(?<=[_.])(?=[a-z_]*\d)[0-9a-z_]{6,}|(?<=_)\w{8}$|\d+", "N", item)


def headline(err: str) -> str:
    """The first line of pmrun's own report."""
    return next((line for line in err.splitlines() if line.startswith("pmrun: ")), "no report")


def names_in(text: str) -> list[int]:
    """The ranks that a text names; where it begins with one, that one."""
    first = re.match(r"pmrun: (?:hang: )?rank (\d+) ", text)
    return [int(first[1])] if first else sorted({int(number) for number in re.findall(r"\brank\W{1,9}(\d+)\b", text)})


def judge(key: str, found: Line, err: str) -> str:
    """What does not hold of pmrun, with the first line of its report."""
    mishap = MISHAPS[key]
    wrong = []
    if key != "launcher" and (found["code"] == 0 if mishap.code is None else found["code"] != mishap.code):
        wrong.append(f"exit code {found['code']}")
    if mishap.named and 1 not in found["names"]:
        wrong.append(f"names {found['names']}")
    if max(found["gone_s"], found["ended_s"]) > mishap.ended_s:
        wrong.append(f"gone after {found['gone_s']:.2f} s, ended after {found['ended_s']:.2f} s")
    if key == "agent" and "the agent on b is lost" not in err:
        wrong.append("does not name the node")
    if key == "mismatch" and err.count("CollectiveMismatch: ") < RANKS:
        wrong.append("not raised on all ranks")
    if key == "flood" and (found["lost"] or found["most_mb"] > FLOOD_MB):
        wrong.append(f"{found['lost']} bytes lost, {found['most_mb']:.0f} MB")
    return f"{', '.join(wrong)}: {headline(err)}" if wrong else ""


# ---- the table --------------------------------------------------------------------------------------------


def seconds(values: list[float]) -> str:
    middle = statistics.median(values)
    return "never" if middle == struck.NEVER else f"{middle:.2f}"


def cell(key: str, lines: list[Line]) -> str:
    """What is shown of one row of one contender."""
    if not lines:
        return "-"
    if key == "flood":
        lost = max(line["lost"] for line in lines)
        return f"{max(line['most_mb'] for line in lines):.0f} MB; " + (f"{lost} bytes lost" if lost else "all arrived")
    gone, ended = (seconds([line[name] for line in lines]) for name in ("gone_s", "ended_s"))
    if key == "launcher":
        return gone
    named = sorted({rank for line in lines for rank in line["names"]})
    codes = sorted({line["code"] for line in lines if line["code"] is not None})
    said = f"names {', '.join(map(str, named))}" if named else "names no rank"
    return f"{gone} / {ended}" + (f"; {', '.join(map(str, codes))}" if codes else "") + f"; {said}"


def left_of(lines: list[Line]) -> str:
    """What was left, of the worst of them."""
    if not lines:
        return "-"
    if any(line["gone_s"] == struck.NEVER for line in lines):
        return "its ranks go on"
    if any(line["left"] is None for line in lines):
        return "it does not end"
    worst = collections.Counter(map(plain, max((line["left"] for line in lines), key=len)))
    return ", ".join(f"{count} × `{item}`" for item, count in sorted(worst.items())) or "nothing"


def table(lines: list[Line]) -> None:
    """Print the table: a column for each contender that took part."""
    by_how: dict[str, list[Line]] = {}
    for line in lines:
        by_how.setdefault(line["how"], []).append(line)
    names = [name for name in ("pmrun", *PEERS) if any(how.startswith(f"{name}: ") for how in by_how)]
    rows = [
        (mishap.text, [cell(key, by_how.get(f"{name}: {key}", [])) for name in names])
        for key, mishap in MISHAPS.items()
    ]
    for key in ("killed", "launcher", "daemon"):
        rows.append((f"left after: {MISHAPS[key].text}", [left_of(by_how.get(f"{name}: {key}", [])) for name in names]))
    starts = {
        name: [line["start_s"] for line in lines if "start_s" in line and line["how"].startswith(f"{name}: ")]
        for name in names
    }
    rows.append(
        (
            "start, until all ranks are past init",
            [f"{seconds(starts[name])} s" if starts[name] else "-" for name in names],
        )
    )
    shown = {name: peer.shown for name, peer in PEERS.items()} | {"gloo": "torchrun (Gloo)"}
    print(
        "| all ranks gone / command ended, s; exit code; whom it names | "
        + " | ".join(shown.get(n, n) for n in names)
        + " |"
    )
    print("|---" * (len(names) + 1) + "|")
    for text, cells in rows:
        if set(cells) != {"-"}:
            print(f"| {text} | {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=[], help="in .venv-bench (peers.py)")
    parser.add_argument("--only", nargs="+", choices=list(MISHAPS), default=list(MISHAPS), metavar="MISHAP")
    parser.add_argument("--patience-s", type=float, default=6.0, help="after it, something never ends")
    struck.add_arguments(parser, OUTPUT, count=1)
    parser.set_defaults(layout=Layout(2, 2))  # the second machine for the agent that is killed
    asked = parser.parse_args()
    with struck.opened(asked.layout) as field:
        everyone = contenders(field, asked.peers)
        plan = [
            (f"{name}: {key}", seed)
            for seed in range(asked.seed, asked.seed + asked.count)
            for key in asked.only
            for name in everyone
            if name == "pmrun" or key != "agent"  # their agents need other commands on each machine
        ]
        lines = struck.in_slices(asked, KIND, field, plan, functools.partial(play, asked.patience_s, everyone))
    table(lines)
    return 1 if any(struck.wrong(line) for line in lines if line["how"].startswith("pmrun: ")) else 0


if __name__ == "__main__":
    sys.exit(main())
