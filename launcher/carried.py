# SPDX-License-Identifier: Apache-2.0
"""Which of the launcher's variables the ranks on another machine get: all, but those about this machine or session.

People set variables for their programs and expect them to arrive (PATH, VIRTUAL_ENV, CUDA_..., WANDB_...); what the
other machine knows better (HOME, SSH_..., a desktop's, a batch system's) stays its own. Pure. Invariant: --env is not
the business of this list; it always arrives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_OWN: Final = frozenset(
    b"HOME USER LOGNAME SHELL MAIL HOSTNAME HOST PWD OLDPWD SHLVL _ TERM TERMINFO TERMCAP COLORTERM COLUMNS LINES "
    b"DISPLAY XAUTHORITY WINDOWID TMPDIR TMP TEMP LS_COLORS LESSOPEN LESSCLOSE INVOCATION_ID JOURNAL_STREAM "
    b"container STY EDITOR VISUAL PS1 HISTFILE".split()
)
_OWN_PREFIXES: Final = (
    b"SSH_", b"XDG_", b"DBUS_", b"TMUX", b"TERM_", b"WAYLAND_", b"GNOME_", b"KDE_", b"GTK_", b"GPG_", b"SUDO_",
    b"BASH_FUNC_", b"SYSTEMD_", b"KUBERNETES_", b"SLURM", b"PMI_", b"PMIX_", b"PRTE_", b"OMPI_", b"HYDRA_", b"AWS_BATCH_",
)  # fmt: skip


def carried_environment(environ: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The pairs that go along, sorted."""
    return tuple(
        (name, value)
        for name, value in sorted(environ.items())
        if name not in _OWN and not name.startswith(_OWN_PREFIXES)
    )
