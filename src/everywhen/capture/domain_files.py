# SPDX-License-Identifier: AGPL-3.0-or-later
"""What besides its disks makes a VM: its definition, its UEFI variables, the state of its TPM; as files of a recovery point.

The definition as it will be started next, and the one it runs by, which may differ. Both have their secrets: without them it
could not be defined anew. libvirt does not say where the TPM's state is: that follows from the UUID, below its state folder.
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from everywhen.capture.domain_xml import DomainXml, parse_domain
from everywhen.capture.qmp import MonitorError
from everywhen.formats.errors import Corrupt

if TYPE_CHECKING:  # who only knows these names needs no libvirt
    from everywhen.capture.libvirt_host import Domain

DEFINITION = "domain.xml"
RUNNING = "domain-running.xml"
NVRAM = "nvram.fd"
TPM = "tpm-state.tar"
LIBVIRT_STATE = Path("/var/lib/libvirt")
_LARGEST = 64 << 20
"""Bytes of UEFI variables (0.5 MB) or of a TPM (some KB): more than this is something else."""


def definition_files(domain: Domain, state: Path = LIBVIRT_STATE) -> dict[str, bytes]:
    """Contents by file name. `state`: libvirt's folder of states. Raises MonitorError when one of them cannot be had."""
    stored = domain.xml(running=False)
    files = {DEFINITION: stored.encode()}
    try:
        if domain.runs:
            running = domain.xml(running=True)
            files[RUNNING] = running.encode()
            parsed = parse_domain(running)
        else:
            parsed = parse_domain(stored)
        if (variables := variables_of(parsed, state)) is not None:
            files[NVRAM] = _read(variables)
        if parsed.emulated_tpm:
            files[TPM] = _tar(state / "swtpm" / parsed.uuid)
    except Corrupt as error:
        raise MonitorError(f"{domain.name}: {error}") from error
    except OSError as error:
        raise MonitorError(f"{domain.name}: {error.filename} cannot be read: {error.strerror}") from error
    return files


def variables_of(parsed: DomainXml, state: Path = LIBVIRT_STATE) -> Path | None:
    """The file of its UEFI variables. Of a domain that is off it may be where libvirt makes it, if it ever ran."""
    if parsed.nvram is not None:
        return Path(parsed.nvram)
    usual = state / "qemu" / "nvram" / f"{parsed.name}_VARS.fd"
    return usual if parsed.chosen_firmware and usual.exists() else None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise MonitorError(f"{path} is larger than {_LARGEST:,} bytes, which no such file is")
    return content


def _tar(folder: Path) -> bytes:
    """The regular files of a folder, with owners and modes; the same bytes as long as nothing of it changes."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(_files(folder)):
            content = _read(path)
            member = tar.gettarinfo(path, arcname=str(path.relative_to(folder)))
            member.size = len(content)  # it may have grown since
            tar.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def _files(folder: Path) -> list[Path]:
    found = []
    for place, _, names in os.walk(folder, onerror=_refuse):
        found += [path for name in names if (path := Path(place, name)).is_file() and not path.is_symlink()]
    return found


def _refuse(error: OSError) -> None:
    raise error
