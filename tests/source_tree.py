# SPDX-License-Identifier: Apache-2.0
"""The files of the repository, as the tidy tests look at them.

Invariant: what is listed is what git knows or would take (ignored build output is left out), so the tests hold in a
clone, in a worktree with uncommitted files, and in an unpacked source distribution (where there is no git).
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_OWN_TOP = ("_native", "src", "launcher", "tests", "benchmarks", "examples", "docs", ".ci")


@functools.cache
def files() -> tuple[Path, ...]:
    """All files, relative to the root, sorted."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.split("\0")  # fmt: skip
    else:
        found = [path for top in _OWN_TOP for path in (ROOT / top).rglob("*")] + list(ROOT.glob("*"))
        listed = [str(path.relative_to(ROOT)) for path in found]
    paths = (Path(name) for name in listed if name)
    return tuple(sorted(path for path in paths if (ROOT / path).is_file() and "__pycache__" not in path.parts))


def having(*suffixes: str, under: tuple[str, ...] = ()) -> list[Path]:
    """Files with one of these suffixes; `under`: in one of these top-level folders."""
    return [path for path in files() if path.suffix in suffixes and (not under or path.parts[0] in under)]


def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def module_name(path: Path) -> str:
    """The name under which a file of src/ or launcher/ is imported."""
    parts = list(path.with_suffix("").parts)
    parts = parts[1:] if parts[0] == "src" else ["pmrun", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
