# SPDX-License-Identifier: AGPL-3.0-or-later
"""QEMU's machine types by name: the one that is asked for, or the nearest that there is.

A guest sees its machine type as mainboard and chips; a newer version of the same family is the same board with a few more
features. So: the newest that is not newer, else the oldest that is; a distribution's own names are taken for the newest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from everywhen.formats.errors import Corrupt

_VERSIONED = re.compile(r"pc-(i440fx|q35)-([0-9]{1,3}(?:\.[0-9]{1,3}){1,2})", re.ASCII)
_NAME = re.compile(r"^(\S+)\s", re.ASCII | re.MULTILINE)


def listed(text: str) -> list[str]:
    """The names in what `-machine help` prints."""
    return _NAME.findall(text.partition("\n")[2])


def nearest(wanted: str, there: Iterable[str]) -> str:
    """Raises Corrupt for a machine that is no PC."""
    names = set(there)
    if wanted in names and wanted.startswith(("pc", "q35")):
        return wanted
    family = "q35" if "q35" in wanted else "i440fx"
    if not wanted.startswith("pc-") and wanted not in ("pc", "q35"):
        raise Corrupt(f"its machine is {wanted}; only PCs (pc, q35) are booted here")
    asked = _version(wanted, family)
    versions = sorted((version, name) for name in names if (version := _version(name, family)))
    if not asked or not versions:
        return "q35" if family == "q35" else "pc"
    older = [name for version, name in versions if version <= asked]
    return older[-1] if older else versions[0][1]


def _version(name: str, family: str) -> tuple[int, ...]:
    """() for a name without one."""
    match = _VERSIONED.fullmatch(name)
    return tuple(map(int, match[2].split("."))) if match and match[1] == family else ()
