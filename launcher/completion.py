# SPDX-License-Identifier: Apache-2.0
"""Completion scripts for bash, zsh and fish, made from the table of options.

The scripts are complete in themselves: pressing Tab starts no Python. All three stop offering pmrun's options
where the user's own program begins, as the command line does. Invariant: an option of the table is in all three.
"""

from __future__ import annotations

from typing import Any

from pmrun.errors import UsageError
from pmrun.launcher.options import OPTIONS, Option, suggestion

_INSTALL = {
    "bash": 'eval "$(pmrun --completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(pmrun --completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "pmrun --completion fish | source    # in ~/.config/fish/config.fish",
}


def completion_script(shell: str) -> str:
    """The script for one shell; UsageError for a shell that is not known."""
    makers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in makers:
        close = suggestion(shell, list(makers))
        raise UsageError(
            f"--completion {shell}: no completion for '{shell}'{close}; choose one of: {', '.join(makers)}"
        )
    return f"# pmrun completion for {shell}: {_INSTALL[shell]}\n{makers[shell]()}"


def _spellings(option: Option[Any]) -> list[str]:
    words = [f"-{option.short}"] if option.short else []
    if option.name != option.short:
        words.append(f"--{option.name}")
    if option.negatable:
        words.append(f"--no-{option.name}")
    return words


def _with_value() -> list[Option[Any]]:
    return [option for option in OPTIONS if not option.flag]


# ---- bash -------------------------------------------------------------------------------------------------

_BASH = r"""_pmrun() {
    local cur=${COMP_WORDS[COMP_CWORD]} i=1 option=
    COMPREPLY=()
    while ((i < COMP_CWORD)); do  # bash splits --grace=5 into three words
        option=${COMP_WORDS[i]}
        ((i += 1))
        case $option in
            @VALUED@)
                if [[ ${COMP_WORDS[i]} == "=" ]]; then
                    if ((i == COMP_CWORD)); then cur=; else ((i += 1)); fi
                fi
                if ((i < COMP_CWORD)); then ((i += 1)); option=; fi ;;
            -m | --) if ((i < COMP_CWORD)); then compopt -o default; return; fi ;;
            -*) option= ;;
            *) compopt -o default; return ;;
        esac
    done
    case $option in
@CASES@
        --) compopt -o default; COMPREPLY=($(compgen -c -- "$cur")); return ;;
        -*) return ;;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "@WORDS@" -- "$cur"))
    else
        compopt -o filenames
        COMPREPLY=($(compgen -f -X '!*.py' -- "$cur") $(compgen -d -- "$cur"))
    fi
}
complete -F _pmrun pmrun
"""


def _bash() -> str:
    cases = []
    for option in _with_value():
        pattern = "|".join(_spellings(option))
        if option.complete == "file":
            cases.append(f"        {pattern}) compopt -o default; return ;;")
        elif option.complete == "dir":
            cases.append(f'        {pattern}) compopt -o filenames; COMPREPLY=($(compgen -d -- "$cur")); return ;;')
        elif option.complete:
            cases.append(f'        {pattern}) COMPREPLY=($(compgen -W "{option.complete}" -- "$cur")); return ;;')
    words = [word for option in OPTIONS for word in _spellings(option)]
    valued = "|".join(word for option in _with_value() for word in _spellings(option))
    script = _BASH.replace("@VALUED@", valued).replace("@CASES@", "\n".join(cases))
    return script.replace("@WORDS@", " ".join([*words, "-m"]))


# ---- zsh --------------------------------------------------------------------------------------------------


def _zsh() -> str:
    specs = [f"        {_quote(spec)}" for option in OPTIONS for spec in _zsh_specs(option)]
    specs.append("        '(-)-m[run a module]:module: :(( ))'")
    specs.append("        '1:script:_files -g \"*.py\"'")
    specs.append("        '*::arguments:_normal'")
    return "_pmrun() {\n    _arguments -S -A '-*' \\\n" + " \\\n".join(specs) + "\n}\ncompdef _pmrun pmrun\n"


def _zsh_specs(option: Option[Any]) -> list[str]:
    text = option.text.replace("[", "(").replace("]", ")").replace(":", "\\:")
    many = "*" if option.repeatable else ""
    action = {"file": "_files", "dir": "_files -/", "": " "}.get(option.complete, f"({option.complete})")
    value = "" if option.flag else f":{option.name}:{action}"
    return [f"{many}{word}[{text}]{value}" for word in _spellings(option)]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---- fish -------------------------------------------------------------------------------------------------

_FISH = r"""function __pmrun_before_command
    set -l words (commandline -opc)
    set -l skip 1
    for word in $words
        if test $skip -gt 0
            set skip (math $skip - 1)
            continue
        end
        switch $word
            case -m --
                return 1
            case @VALUED@
                set skip 1
            case '-*'
            case '*'
                return 1
        end
    end
    return 0
end
complete -c pmrun -n __pmrun_before_command -f -a '(__fish_complete_suffix .py)'
complete -c pmrun -n __pmrun_before_command -s m -x -d 'run a module'
"""


def _fish() -> str:
    lines = [_FISH.replace("@VALUED@", " ".join(w for option in _with_value() for w in _spellings(option)))]
    for option in OPTIONS:
        text = option.text.replace("\\", "\\\\").replace("'", "\\'")
        names = f" -s {option.short}" if option.short else ""
        names += f" -l {option.name}" if option.name != option.short else ""
        value = ""
        if not option.flag:
            value = {"file": " -r -F", "dir": " -x -a '(__fish_complete_directories)'", "": " -x"}.get(
                option.complete, f" -x -a '{option.complete}'"
            )
        lines.append(f"complete -c pmrun -n __pmrun_before_command{names}{value} -d '{text}'\n")
        if option.negatable:
            lines.append(f"complete -c pmrun -n __pmrun_before_command -l no-{option.name} -d 'not --{option.name}'\n")
    return "".join(lines)
