# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen completion SHELL`, and the files that completing reads (see `completing.py`, which does the work)."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

import typer

from everywhen.interfaces.cli.app import RUN, PassphraseFile, Repo, app, context_of
from everywhen.interfaces.cli.completing import cache_folder, commands_file, names_file
from everywhen.interfaces.cli.help_topics import topics
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import WrongUsage
from everywhen.services.groups import PREFIX

_POINTS = 30
"""The newest so many points of a VM are offered."""

_CHOICES: dict[str, list[str]] = {
    "--format": ["raw", "qcow2", "vhd", "vhd-fixed", "vhdx", "vmdk"],
    "--progress": ["auto", "json"],
    "--encryption": ["aes-256-gcm", "none"],
}
_KINDS = {
    "VM": "vm",
    "VM|group:NAME": "vm|group",
    "MOMENT": "moment",
    "MOMENT|group:NAME": "moment|group",
    "POINT": "point",
    "DISK=IMAGE": "disk=file",
    "REPO": "file",
    "FILE": "file",
    "PATH": "file",
    "DIR": "file",
    "SOCKET": "file",
}

_BASH = """\
# bash completion of everywhen: into /etc/bash_completion.d/everywhen, or: source <(everywhen completion bash)
_everywhen() {
    local IFS=$'\\n'
    COMPREPLY=($(@RUN@ bash "$COMP_WORDBREAKS" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    if [[ ${COMPREPLY[0]} == :files ]]; then
        COMPREPLY=()
        compopt -o default 2>/dev/null
    elif [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _everywhen everywhen
"""
_ZSH = """\
#compdef everywhen
# zsh completion of everywhen: into a folder of $fpath as _everywhen, or: source <(everywhen completion zsh)
_everywhen() {
    local -a found
    found=("${(@f)$(@RUN@ words "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ $found[1] == :files ]]; then
        _files
    elif [[ -n $found[1] ]]; then
        compadd -- "${found[@]}"
    fi
}
if [[ $funcstack[1] == _everywhen ]]; then
    _everywhen "$@"
else
    compdef _everywhen everywhen
fi
"""
_FISH = """\
# fish completion of everywhen: into ~/.config/fish/completions/everywhen.fish, or: everywhen completion fish | source
function __everywhen_complete
    set -l before (commandline -opc)
    set -l found (@RUN@ words $before[2..-1] (commandline -ct) 2>/dev/null)
    if test "$found[1]" = ":files"
        __fish_complete_path (commandline -ct)
    else
        string join -- \\n $found
    end
end
complete -c everywhen -f -a '(__everywhen_complete)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@app.command("completion", rich_help_panel=RUN)
def completion(shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print a script that lets a shell complete commands, options, VMs, disks and moments."""
    script = _SCRIPTS.get(shell)
    if script is None:
        raise WrongUsage(f'"{shell}": completion is there for {", ".join(_SCRIPTS)}.', on=shell)
    context = context_of({})
    write_commands(context.env)
    run = f"{shlex.quote(sys.executable)} -m everywhen.interfaces.cli.completing"
    sys.stdout.write(script.replace("@RUN@", run))


@app.command("__names", hidden=True)
def names(repo: Repo = None, passphrase_file: PassphraseFile = None) -> None:
    """Write the files that completing reads; started by it."""
    context = context_of(locals())
    write_commands(context.env)
    with context.repository() as repository:
        write_names(context.env, context.repository_name(), read_catalog(repository))


def write_names(env: Mapping[str, str], repository: str, catalog: Catalog) -> None:
    """Remember names of VMs, groups, disks, marks, points for completing; a cache that cannot be written stops no command."""
    found: dict[str, dict[str, list[str]]] = {}
    groups: dict[str, dict[str, list[str]]] = {}
    for vm in catalog.vms:
        points = catalog.points_of(vm)
        found[vm.name] = {
            "disks": sorted(points[-1].disks) if points else [],
            "marks": [point.mark for point in points if point.mark],
            "points": [point.point for point in reversed(points[-_POINTS:])],
        }
        if vm.group:
            group = groups.setdefault(PREFIX + vm.group, {"disks": [], "marks": [], "points": []})
            group["marks"] += [mark for mark in found[vm.name]["marks"] if mark not in group["marks"]]
    with suppress(OSError):
        _write(env, names_file(env, repository), {"vms": found, "groups": groups})


def write_commands(env: Mapping[str, str]) -> None:
    """Remember commands, options and what each takes for completing."""
    table: dict[str, Any] = {}
    _describe(table, "", typer.main.get_command(app))
    _write(env, commands_file(env), table)


def _describe(table: dict[str, Any], path: str, command: Any) -> None:  # noqa: ANN401 - the parser's types are private
    options: dict[str, Any] = {}
    arguments: list[Any] = []
    repeats = False
    for parameter in command.params:
        if parameter.param_type_name == "option":
            kind = None if parameter.is_flag or parameter.count else _option_kind(parameter)
            options |= dict.fromkeys([*parameter.opts, *parameter.secondary_opts], kind)
        else:
            arguments.append(_argument_kind(parameter))
            repeats = repeats or parameter.nargs == -1
    found: dict[str, Any] = {"options": {**options, "--help": None}, "arguments": arguments, "repeats": repeats}
    children = {name: child for name, child in getattr(command, "commands", {}).items() if not child.hidden}
    if children:
        found["commands"] = sorted(children)
        for name, child in children.items():
            _describe(table, f"{path} {name}".strip(), child)
    table[path] = found


def _option_kind(parameter: Any) -> Any:  # noqa: ANN401 - see `_describe`
    name = parameter.opts[0]
    if name in _CHOICES:
        return _CHOICES[name]
    if name == "--repo" or name.endswith("-file"):
        return "file"
    return _KINDS.get(str(parameter.metavar), "text")


def _argument_kind(parameter: Any) -> Any:  # noqa: ANN401 - see `_describe`
    word = str(parameter.metavar).replace("...", "").strip("[]")
    if word == "TOPIC":
        return sorted(topics())
    if word == "SHELL":
        return sorted(_SCRIPTS)
    return _KINDS.get(word, "text")


def _write(env: Mapping[str, str], path: str, value: Mapping[str, Any]) -> None:
    os.makedirs(cache_folder(env), mode=0o700, exist_ok=True)
    new = f"{path}.{os.getpid()}"
    with open(new, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(new, path)
