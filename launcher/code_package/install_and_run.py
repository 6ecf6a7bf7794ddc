# SPDX-License-Identifier: Apache-2.0
"""Installs pmrun on a node whose image has none, then becomes it. Sent as text (stock_image.py), before pmrun is there.

`python3 -c TEXT RELEASE REQUIREMENT WHEELHOUSE words of pmrun...`: a directory or a URL to find wheels in, empty for
pip's index. Goes into the image's own Python, beside what the image brings: the container is this job's own. A release
that is there already is not installed again. Invariant: the standard library alone, in words that Pythons too old for
pmrun understand, so that they can say so; it ends with one line, or becomes pmrun.
"""

import importlib.util
import os
import re
import subprocess
import sys

START_FAILED = 75  # as pmrun.errors has it


def main(words):
    # type: (list[str]) -> None
    """Never returns."""
    release, requirement, wheelhouse = words[:3]
    if sys.version_info < (3, 10):
        end("this image has Python %s, and pmrun needs 3.10 or newer" % sys.version.split()[0])
    if installed() != release or "[" in requirement:
        install(requirement, wheelhouse)
        if installed() != release:
            end("the image has pmrun %s, which shadows %s as pip installed it" % (installed(), release))
    os.execv(sys.executable, [sys.executable, "-m", "pmrun", *words[3:]])


def installed():
    # type: () -> str
    """The release of pmrun that this Python has, or nothing."""
    import importlib.metadata  # which Pythons that are too old do not have

    importlib.invalidate_caches()  # pip may have changed the answer
    try:
        return importlib.metadata.version("pmrun")
    except importlib.metadata.PackageNotFoundError:
        return ""


def install(requirement, wheelhouse):
    # type: (str, str) -> None
    """By pip, which is given less time than by default for an index that is not there."""
    if wheelhouse and "://" not in wheelhouse and not os.path.isdir(wheelhouse):
        end("the wheelhouse %s is not there on this node: is its volume mounted?" % wheelhouse)
    if importlib.util.find_spec("pip") is None:
        end("this image's Python (%s) has no pip to install pmrun with" % sys.executable)
    for name, value in (
        ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_RETRIES", "2"),
        ("PIP_DEFAULT_TIMEOUT", "10"),
    ):
        os.environ.setdefault(name, value)
    where = ["--no-index", "--find-links", wheelhouse] if wheelhouse else []
    pip = [sys.executable, "-m", "pip", "install", "--no-input", *where, requirement]
    done = subprocess.run(pip, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        why = reason(done.stdout.decode(errors="replace"))
        end("pip cannot install %s from %s: %s" % (requirement, wheelhouse or "the index", why))


def reason(said):
    # type: (str) -> str
    """Of all that pip says, what it failed by."""
    if re.search("connection broken|Could not fetch URL|is being ignored|Connection to .* timed out", said):
        return "it cannot be reached from this node"
    if "No space left" in said:
        return "no space is left on this node's disk"
    missing = re.search(r"No matching distribution found for ([^\s,;]*)", said)
    if missing:
        return "it has no %s for Python %s on %s" % (missing.group(1), sys.version.split()[0], os.uname().machine)
    errors = [line for line in said.splitlines() if line.lower().startswith("error")]
    return (errors or said.splitlines() or ["no reason given"])[-1]


def end(text):
    # type: (str) -> None
    """Say why, and end as a launcher whose nodes cannot start."""
    sys.stderr.write("pmrun: %s; use an image with pmrun in it, or another --pip\n" % text)
    sys.exit(START_FAILED)


if __name__ == "__main__":
    main(sys.argv[1:])
