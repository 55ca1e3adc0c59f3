# SPDX-License-Identifier: AGPL-3.0-or-later
"""The UEFI of a booted copy: the code of this host's OVMF that fits the variables which the moment has.

Code and variables are two parts of one flash of 2 or 4 MiB (edk2, OvmfPkg/README): that is how it is seen what fits what.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from everywhen.services.boot.machine import Machine
from everywhen.services.failures import Failed, NotFound

FOLDERS = ("/usr/share/OVMF", "/usr/share/edk2/ovmf", "/usr/share/edk2/x64", "/usr/share/edk2-ovmf/x64", "/usr/share/qemu")
"""Of Debian and Ubuntu, Fedora, Arch, openSUSE."""
_CODE = ("OVMF_CODE_4M.fd", "OVMF_CODE.4m.fd", "ovmf-x86_64-4m-code.bin", "OVMF_CODE.fd", "ovmf-x86_64-code.bin")
_SECURE = ("OVMF_CODE_4M.secboot.fd", "OVMF_CODE.secboot.4m.fd", "ovmf-x86_64-smm-ms-code.bin", "OVMF_CODE.secboot.fd")
_VARIABLES = ("OVMF_VARS_4M.fd", "OVMF_VARS.4m.fd", "ovmf-x86_64-4m-vars.bin", "OVMF_VARS.fd", "ovmf-x86_64-vars.bin")
_FLASHES = (4 << 20, 2 << 20)
_SHARED = "/usr/share/"
_QCOW2 = b"QFI\xfb"
_EXTERNAL = 1 << 2
"""Of the incompatible features of a qcow2 (QEMU: docs/interop/qcow2.txt): its content is in another file."""


@dataclass(frozen=True, slots=True)
class Flash:
    """`code`: a file of this host, raw; `variables`: their content, in an image of that `format`; `secure`: they are kept from
    the guest's system, by the processor's system management mode."""

    code: str
    variables: bytes
    format: str
    secure: bool


def flash_for(machine: Machine, nvram: bytes | None, folders: Sequence[str] = FOLDERS) -> Flash:
    """What a machine with UEFI boots from; `nvram`: its variables, else those that OVMF is delivered with.

    Raises NotFound, Failed for variables that are none, OSError.
    """
    secure = machine.secure or "secboot" in machine.loader or ".ms." in machine.loader
    places = [os.path.join(folder, name) for name in (_SECURE if secure else _CODE) for folder in folders]
    # A definition names a file of this host, which its guest gets to read: only what any system has is believed.
    named = [machine.loader] if os.path.realpath(machine.loader).startswith(_SHARED) else []
    codes = [path for path in (*named, *places) if os.path.isfile(path) and not _is_qcow2(path)]
    if nvram is not None:
        kind, length = _shape(nvram)
        for code in codes:
            if os.path.getsize(code) + length in _FLASHES:
                return Flash(code, nvram, kind, secure)
        raise _none("no UEFI (OVMF) on this host fits its variables")
    for code in codes:
        for path in (os.path.join(folder, name) for name in _VARIABLES for folder in folders):
            if os.path.isfile(path) and os.path.getsize(path) + os.path.getsize(code) in _FLASHES:
                with open(path, "rb") as file:
                    return Flash(code, file.read(), "raw", secure)
    raise _none("there is no UEFI (OVMF) on this host")


def _shape(nvram: bytes) -> tuple[str, int]:
    """Format and length of the variables. Raises Failed."""
    if nvram[:4] != _QCOW2:
        return "raw", len(nvram)
    if len(nvram) < 104:
        raise Failed("The moment's UEFI variables are damaged.")
    # A qcow2 may name two other files, which QEMU would open whatever they are: neither has a place here.
    version, backing, size, features = struct.unpack_from(">4xIQ8xQ40xQ", nvram)
    if backing or (version > 2 and features & _EXTERNAL):
        raise Failed("The moment's UEFI variables lie in another file, which is not in the moment.")
    return "qcow2", size


def _is_qcow2(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == _QCOW2


def _none(what: str) -> NotFound:
    return NotFound(f"The VM boots by UEFI, and {what}.", do=["apt-get install ovmf"])
