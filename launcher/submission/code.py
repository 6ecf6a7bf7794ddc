# SPDX-License-Identifier: Apache-2.0
"""The code of a submitted job (`--code`): what its request says of it, and the sending.

A request is data, which `--dry-run` prints, so it names the package by its hash, and the package itself is made anew when
it is sent. Invariant: what is sent has the hash that the request, and with it every node, was told.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pmrun.errors import UsageError
from pmrun.launcher.code_package.archive import Package, pack
from pmrun.launcher.code_package.places import Place, open_place
from pmrun.launcher.job import Job

Code = dict[str, Any]  # directory, limit_mib, sha256, address, cwd: the nodes' working directory, in the code


def code_place(job: Job) -> Place | None:
    """Where `--code-store` wants the code, None where that is the engine's to choose. No call leaves this machine."""
    assert job.submission is not None
    store = job.submission.code_store
    return None if store is None else open_place(store)


def describe_code(job: Job, address: Callable[[str], str]) -> Code | None:
    """What a request says of the job's code; None where it has none. No call leaves this machine.

    Parameters
    ----------
    job
        A submitted one.
    address
        From the package's hash to where nodes find it: a place's, or config_map.address.
    """
    assert job.submission is not None
    if job.submission.code is None:
        return None
    directory = os.path.abspath(job.submission.code)
    with pack(directory, job.submission.code_limit_mib << 20) as package:
        digest = package.digest
    return {
        "directory": directory,
        "limit_mib": job.submission.code_limit_mib,
        "sha256": digest,
        "address": address(digest),
        "cwd": _below(directory, job.cwd),
    }


def pack_again(code: Code) -> Package:
    """The package that a request describes.

    Raises
    ------
    UsageError
        A file was changed since.
    """
    package = pack(code["directory"], code["limit_mib"] << 20)
    if package.digest != code["sha256"]:
        package.close()
        raise UsageError(f"--code {code['directory']}: a file in it was changed just now; submit again")
    return package


def send_code(code: Code, place: Place) -> bool:
    """Bring it where the nodes look for it; False where it is already."""
    with pack_again(code) as package:
        return place.keep(package)


def _below(directory: str, cwd: str | None) -> str | None:
    """The nodes' --cwd: as this command stands to the code's directory, they do. None: the directory itself."""
    if cwd is not None and os.path.isabs(cwd):
        return cwd
    here = os.path.relpath(os.path.realpath(os.getcwd()), os.path.realpath(directory))
    if here.split(os.sep)[0] == "..":
        return cwd
    below = os.path.normpath(os.path.join(here, cwd or ""))
    return None if below == "." else below
