# SPDX-License-Identifier: Apache-2.0
"""Completion scripts for bash, zsh and fish, made from the tables of options.

The scripts are complete in themselves: pressing Tab starts no Python. All three stop offering pmrun's options
where the user's own program begins, as the command line does; `pmrun bench` runs no program, so its options and
operations are offered to the end of the line. Invariant: an option of a table is in all three.
"""

from __future__ import annotations

from typing import Any

from pmrun.bench.points import known
from pmrun.errors import UsageError
from pmrun.launcher import commands
from pmrun.launcher.bench.choices import KNOWN, TABLE
from pmrun.launcher.option import Option, suggestion
from pmrun.launcher.options import OPTIONS

Options = tuple[Option[Any], ...]

_BENCH: Options = KNOWN
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


def _with_value(options: Options) -> list[Option[Any]]:
    return [option for option in options if not option.flag]


def _command_names() -> list[str]:
    """The subcommands that are for people."""
    return [how.split()[1] for how, _ in commands.summaries()]


# ---- bash -------------------------------------------------------------------------------------------------

_BASH = r"""@NAME@() {
    local cur=${COMP_WORDS[COMP_CWORD]} i=@FIRST@ option=
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
@PROGRAM@
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
@PLAIN@
    fi
}
"""
_BASH_PROGRAM = """\
            -m | --) if ((i < COMP_CWORD)); then compopt -o default; return; fi ;;
            -*) option= ;;
            bench) if ((i == 2)); then _pmrun_bench; return; fi ;;&
            *) compopt -o default; return ;;"""
_BASH_FILES = """\
        compopt -o filenames
        COMPREPLY=($(compgen -f -X '!*.py' -- "$cur") $(compgen -d -- "$cur"))
        if ((COMP_CWORD == 1)); then COMPREPLY+=($(compgen -W "@COMMANDS@" -- "$cur")); fi"""


def _bash() -> str:
    files = _BASH_FILES.replace("@COMMANDS@", " ".join(_command_names()))
    operations = f'        COMPREPLY=($(compgen -W "{" ".join(known())}" -- "$cur"))'
    bench = _bash_function("_pmrun_bench", 2, _BENCH, "            *) option= ;;", operations)
    return bench + _bash_function("_pmrun", 1, OPTIONS, _BASH_PROGRAM, files) + "complete -F _pmrun pmrun\n"


def _bash_function(name: str, first: int, options: Options, program: str, plain: str) -> str:
    """One command's: `first` is the place of its first word, `program` what a word that is no option means."""
    cases = []
    for option in _with_value(options):
        pattern = "|".join(_spellings(option))
        if option.complete == "file":
            cases.append(f"        {pattern}) compopt -o default; return ;;")
        elif option.complete == "dir":
            cases.append(f'        {pattern}) compopt -o filenames; COMPREPLY=($(compgen -d -- "$cur")); return ;;')
        elif option.complete:
            cases.append(f'        {pattern}) COMPREPLY=($(compgen -W "{option.complete}" -- "$cur")); return ;;')
    words = [word for option in options for word in _spellings(option)]
    parts = {
        "@NAME@": name,
        "@FIRST@": str(first),
        "@VALUED@": "|".join(word for option in _with_value(options) for word in _spellings(option)),
        "@PROGRAM@": program,
        "@CASES@": "\n".join(cases),
        "@WORDS@": " ".join([*words, "-m"] if options is OPTIONS else words),
        "@PLAIN@": plain,
    }
    script = _BASH
    for mark, text in parts.items():
        script = script.replace(mark, text)
    return script


# ---- zsh --------------------------------------------------------------------------------------------------


_ZSH = """_pmrun() {
    if ((CURRENT > 2)) && [[ $words[2] == bench ]]; then
        shift words
        ((CURRENT -= 1))
        _arguments -S @BENCH@
        return
    fi
    _arguments -S -A '-*' @OPTIONS@
}
compdef _pmrun pmrun
"""


def _zsh() -> str:
    program = [
        "(-)-m[run a module]:module: :(( ))",
        f'1:script:{{(( CURRENT == 2 )) && compadd {" ".join(_command_names())}; _files -g "*.py"}}',
        "*::arguments:_normal",
    ]
    bench = _zsh_lines(_BENCH, [f"*:operation:({' '.join(known())})"])
    return _ZSH.replace("@BENCH@", bench).replace("@OPTIONS@", _zsh_lines(OPTIONS, program))


def _zsh_lines(options: Options, more: list[str]) -> str:
    specs = [spec for option in options for spec in _zsh_specs(option)] + more
    return "".join(f" \\\n        {_quote(spec)}" for spec in specs)


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
function __pmrun_in_bench
    set -l words (commandline -opc)
    test (count $words) -gt 1; and test $words[2] = bench
end
function __pmrun_first
    test (count (commandline -opc)) -eq 1
end
complete -c pmrun -n __pmrun_before_command -f -a '(__fish_complete_suffix .py)'
complete -c pmrun -n __pmrun_before_command -s m -x -d 'run a module'
complete -c pmrun -n __pmrun_first -f -a '@COMMANDS@'
complete -c pmrun -n __pmrun_in_bench -f -a '@OPERATIONS@'
"""


def _fish() -> str:
    valued = " ".join(word for option in _with_value(OPTIONS) for word in _spellings(option))
    head = _FISH.replace("@VALUED@", valued).replace("@COMMANDS@", " ".join(_command_names()))
    lines = [head.replace("@OPERATIONS@", " ".join(known()))]
    for option in OPTIONS:
        lines += _fish_lines(option, "'__pmrun_before_command; or __pmrun_in_bench'")
    for option in TABLE:
        lines += _fish_lines(option, "__pmrun_in_bench")
    return "".join(lines)


def _fish_lines(option: Option[Any], when: str) -> list[str]:
    text = option.text.replace("\\", "\\\\").replace("'", "\\'")
    names = f" -s {option.short}" if option.short else ""
    names += f" -l {option.name}" if option.name != option.short else ""
    value = ""
    if not option.flag:
        value = {"file": " -r -F", "dir": " -x -a '(__fish_complete_directories)'", "": " -x"}.get(
            option.complete, f" -x -a '{option.complete}'"
        )
    lines = [f"complete -c pmrun -n {when}{names}{value} -d '{text}'\n"]
    if option.negatable:
        lines.append(f"complete -c pmrun -n {when} -l no-{option.name} -d 'not --{option.name}'\n")
    return lines
