# SPDX-License-Identifier: AGPL-3.0-or-later
"""Addresses: `VM[~N][/DISK][@WHEN][:/path/in/guest]`, the same everywhere (design section 2). `VM~N`: what was left when the VM
was rolled back for the N-th time.

Split at the first `:/`, then at the last `@`, then at the first `/`. So a mark that contains `:/` or `@` cannot stand in
an address as it is: VM and quoted marks are percent-encoded where they need it.

Decided here, where the texts leave it open:

- VM may be a name of ours or the hypervisor's (any text, percent-encoded as UTF-8; so is the `~` where it ends like `~1`);
  which of them, `naming.find_vm` says. DISK is a name of ours. In VM a `%` must begin two hex digits; in a mark a lone `%`
  stands for itself (`"100% done"`).
- WHEN stays text here (what a time means depends on reader and clock); `whens.parse_when` reads it.
- The path is everything from the `/` on, byte for byte: it is the guest's, and never decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from everywhen.services.failures import WrongUsage
from everywhen.services.naming import is_name

_ENCODED = re.compile(r"(?:%[0-9A-Fa-f]{2})+", re.ASCII)
_UNSAFE = re.compile(r"[\s:@\x00-\x1f\x7f]|%(?![0-9A-Fa-f]{2})")
_BRANCH = re.compile(r"~([1-9][0-9]{0,5})\Z", re.ASCII)
_HINT = "Addresses look like web1, web1@-10m, web1/vda@latest or web1@yesterday 18:00:/etc/hosts."


@dataclass(frozen=True, slots=True)
class Address:
    """`vm` decoded; `disk` a name of ours; `when` as written (None: the latest moment); `path` begins with `/`; `branch`: what
    the rollback of that number left (None: no such limit)."""

    vm: str
    disk: str | None = None
    when: str | None = None
    path: str | None = None
    branch: int | None = None

    def __str__(self) -> str:
        """The address in its canonical form: `parse_address` gives the same one back."""
        disk = "" if self.disk is None else f"/{self.disk}"
        when = "" if self.when is None else f"@{self.when}"
        path = "" if self.path is None else f":{self.path}"
        vm = _BRANCH.sub(r"%7E\1", encode(self.vm))
        return f"{vm if self.branch is None else branch_name(vm, self.branch)}{disk}{when}{path}"


def parse_address(text: str) -> Address:
    """The parts of an address. Raises WrongUsage."""
    place, colon, path = text.partition(":/")
    rest, at, when = place.rpartition("@")
    who, slash, disk = (rest if at else place).partition("/")
    if at and not when.strip():
        raise WrongUsage(f'"{text}": nothing stands after the @.', on=text, do=[_HINT])
    if slash and not is_name(disk):
        raise WrongUsage(f'"{text}": "{disk}" is not the name of a disk.', on=text, do=["Disks have names like vda.", _HINT])
    vm, branch = split_branch(who)
    return Address(_vm(vm, text), disk if slash else None, when if at else None, f"/{path}" if colon else None, branch)


def branch_name(vm: str, branch: int) -> str:
    """What the rollback of that number of a VM left, as addresses call it."""
    return f"{vm}~{branch}"


def split_branch(name: str) -> tuple[str, int | None]:
    """A VM's name and the number of a branch of it, of what addresses call so; None where no branch is meant."""
    found = _BRANCH.search(name)
    return (name[: found.start()], int(found[1])) if found else (name, None)


def encode(text: str) -> str:
    """`text` with everything but letters, digits and `._-~` percent-encoded.

    Letters of all scripts stay readable; blanks, control and bidi characters never pass. Raises WrongUsage for what is
    not text (a lone surrogate).
    """
    return "".join(char if char.isalnum() or char in "._-~" else _percent(char, text) for char in text)


def decode(text: str) -> str:
    """`text` with its percent-encoded parts decoded; a `%` that begins none stays. Raises WrongUsage (not UTF-8)."""

    def plain(match: re.Match[str]) -> str:
        try:
            return bytes.fromhex(match[0].replace("%", "")).decode()
        except UnicodeDecodeError as error:
            raise WrongUsage(f'"{text}": {match[0]} is not UTF-8.', on=text) from error

    return _ENCODED.sub(plain, text)


def _percent(char: str, text: str) -> str:
    try:
        return "".join(f"%{byte:02X}" for byte in char.encode())
    except UnicodeEncodeError as error:
        raise WrongUsage(f'"{text}" contains what is not text.', on=text) from error


def _vm(who: str, text: str) -> str:
    if not who:
        raise WrongUsage(f'"{text}" names no VM.', on=text, do=[_HINT])
    if wrong := _UNSAFE.search(who):
        name = f'"{text}": {wrong[0]!r} cannot stand in the name of a VM'
        raise WrongUsage(f"{name}; it is written percent-encoded there.", on=text, do=[_HINT])
    return decode(who)
