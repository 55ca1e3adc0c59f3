# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a shell offers when TAB is pressed, from caches only (ux 4.6). Run as a program of its own.

The whole program takes half a second to load, mostly numpy; a TAB may take 300 ms. So this module imports nothing of ours
and nothing large: 50 ms. It reads two files that `completion.py` writes below the cache folder: the commands and their
options, and the names of VMs, groups, disks and points of each
repository. Where they are missing or old it starts the whole
program in the background to write them, waits a moment for it, and goes on with what is there. It never asks for anything.

    python -m everywhen.interfaces.cli.completing words WORD... CURRENT
    python -m everywhen.interfaces.cli.completing bash WORDBREAKS LINE      (LINE up to the cursor)

Prints candidates, one a line, or `:files` where the shell should offer files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

FILES = ":files"
_FRESH = 600.0
_PATIENCE = 0.2
_WHENS = ("latest", "yesterday", "-10m", "-1h", "-1d", "-7d")


def cache_folder(env: Mapping[str, str]) -> str:
    """Where the two files lie (as the caches of repositories do: `Context.surroundings`)."""
    home = env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(env.get("EVERYWHEN_CACHE") or os.path.join(home, "everywhen"), "completion")


def commands_file(env: Mapping[str, str]) -> str:
    """The commands of this program, as one JSON file."""
    return os.path.join(cache_folder(env), "commands.json")


def names_file(env: Mapping[str, str], repository: str) -> str:
    """The names in the repository that the user calls `repository`."""
    return os.path.join(cache_folder(env), f"names-{hashlib.sha256(os.fsencode(repository)).hexdigest()[:16]}.json")


def candidates(words: list[str], table: Mapping[str, Any], names: Mapping[str, Any]) -> list[str]:
    """What may stand in place of the last of `words` (which may be ''), given all words after the program's name."""
    *before, current = words
    path, command, rest = "", table.get("", {}), list(before)
    while rest and rest[0] in command.get("commands", []):
        path = f"{path} {rest.pop(0)}".strip()
        command = table.get(path, {})
    if command.get("commands"):
        if current.startswith("-"):
            return _beginning(current, command.get("options", {}))
        return _beginning(current, command["commands"])
    options = command.get("options", {})
    if rest and options.get(rest[-1]):
        return _values(options[rest[-1]], current, names)
    if current.startswith("-"):
        return _beginning(current, options)
    arguments = command.get("arguments", [])
    position = _position(rest, options)
    if not arguments or (position >= len(arguments) and not command.get("repeats")):
        return []
    return _values(arguments[min(position, len(arguments) - 1)], current, names)


def _position(rest: list[str], options: Mapping[str, Any]) -> int:
    """How many arguments stand there, options and their values left out."""
    count, value = 0, False
    for word in rest:
        if value:
            value = False
        elif word.startswith("-") and len(word) > 1:
            value = bool(options.get(word))
        else:
            count += 1
    return count


def _values(kind: Any, current: str, names: Mapping[str, Any]) -> list[str]:  # noqa: ANN401 - out of a JSON file
    if isinstance(kind, list):
        return _beginning(current, kind)
    vms: dict[str, Any] = names.get("vms", {})
    if isinstance(kind, str) and kind.endswith("|group"):
        kind, vms = kind.removesuffix("|group"), {**vms, **names.get("groups", {})}
    if kind == "file" or (kind == "disk=file" and "=" in current):
        return [FILES]
    if kind == "disk=file":
        return _beginning(current, [f"{disk}=" for disk in sorted({disk for vm in vms.values() for disk in vm["disks"]})])
    if kind == "vm":
        return _beginning(current, vms)
    if kind == "point":
        return _beginning(current, [point for vm in vms.values() for point in vm["points"]])
    return _moments(current, vms) if kind == "moment" else []


def _moments(current: str, vms: Mapping[str, Any]) -> list[str]:
    place, at, _ = current.rpartition("@")
    vm, slash, _ = (place if at else current).partition("/")
    known = vms.get(vm)
    if at:
        if known is None:
            return []
        marks = [quote(mark, safe="") for mark in known["marks"] if mark[:1].isalpha()]
        return _beginning(current, [f"{place}@{when}" for when in (*_WHENS, *marks, *known["points"])])
    if slash:
        return _beginning(
            current, [f"{vm}/{disk}{tail}" for disk in (known or {}).get("disks", []) for tail in ("", "@latest")]
        )
    found = _beginning(current, vms)
    if len(found) == 1:
        only = found[0]
        found += [f"{only}/{disk}" for disk in vms[only]["disks"]] + [f"{only}@{when}" for when in _WHENS]
    return found


def _beginning(current: str, known: Iterable[str]) -> list[str]:
    return [word for word in known if word.startswith(current)]


def split_line(line: str) -> list[str]:
    """The words of a shell's line after the first one; the last is what is being typed, perhaps ''."""
    for closing in ("", '"', "'"):
        try:
            words = shlex.split(line + closing)
        except ValueError:
            continue
        if not closing and (not line or line[-1].isspace()):
            words.append("")
        return words[1:] or [""]
    return [""]


def after_break(current: str, breaks: str, found: list[str]) -> list[str]:
    """Candidates without the part that bash, which splits words at `breaks`, takes for words before."""
    cut = max((current.rfind(char) for char in breaks if not char.isspace() and char not in "\"'"), default=-1) + 1
    return [word if word == FILES else word[cut:] for word in found]


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _repository(words: list[str], env: Mapping[str, str]) -> str:
    for at, word in enumerate(words[:-2]):
        if word == "--repo":
            return words[at + 1]
    return env.get("EVERYWHEN_REPO", "")


def _refresh(env: Mapping[str, str], repository: str) -> None:
    """Have the files written anew when they are old; only once in a while, whether it works or not."""
    path = names_file(env, repository)
    try:
        fresh = time.time() - os.stat(path + ".tried").st_mtime < _FRESH
    except OSError:
        fresh = False
    if fresh and os.path.exists(commands_file(env)):
        return
    try:
        os.makedirs(cache_folder(env), mode=0o700, exist_ok=True)
        with open(path + ".tried", "w", encoding="utf-8"):
            pass
        writer = subprocess.Popen(
            [sys.executable, "-c", "from everywhen.interfaces.cli.main import main; main(['__names'])"],
            env={**env, "EVERYWHEN_REPO": repository},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        writer.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        writer.returncode = 0  # it goes on by itself; the next TAB finds what it wrote
    except OSError:
        return  # a cache that cannot be written is no reason to disturb somebody who is typing


def main(arguments: list[str]) -> int:
    """Print the candidates. Gives the exit code."""
    if len(arguments) < 2 or arguments[0] not in ("words", "bash") or (arguments[0] == "bash" and len(arguments) != 3):
        return 2
    bash = arguments[0] == "bash"
    words = split_line(arguments[2]) if bash else arguments[1:]
    repository = _repository(words, os.environ)
    _refresh(os.environ, repository)
    found = candidates(words, _read(commands_file(os.environ)), _read(names_file(os.environ, repository)))
    if bash:
        found = after_break(words[-1], arguments[1], found)
    sys.stdout.write("".join(word + "\n" for word in found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
