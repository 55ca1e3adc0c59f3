# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM's definition, UEFI variables and TPM as they were at a moment, for the domain that it is now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from everywhen.capture.domain_files import DEFINITION, LIBVIRT_STATE, NVRAM, RUNNING, TPM
from everywhen.capture.domain_xml import DomainDisk, parse_domain
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.repository import Repository
from everywhen.services.definition_files import definition_name, files_of, read_small
from everywhen.services.failures import Failed
from everywhen.services.returning.definition import Changes, Rewritten, rewritten
from everywhen.services.returning.disk_xml import DeviceSource, FileSource, Placement, Without
from everywhen.services.returning.state_files import StateFile, TpmState, Variables

_KNOWN = (DEFINITION, RUNNING)
_BY_HAND = "Without --config the VM stays defined as it is."


def configuration(repository: Repository, point: RecoveryPoint) -> dict[str, bytes]:
    """What says what the VM was, by name. Raises Failed where the moment does not have it, and what reading raises."""
    files = files_of(repository, point)
    name = definition_name(files.sizes, _KNOWN)
    if name is None:
        what = f"{point.point} has no definition of libvirt's."
        raise Failed(what, on=point.point, safe="Nothing was changed.", do=[_BY_HAND])
    found = {DEFINITION: read_small(files, name, do=_BY_HAND)}
    return found | {other: read_small(files, other, do=_BY_HAND) for other in (NVRAM, TPM) if other in files.sizes}


def defined_as_then(now: str, files: Mapping[str, bytes], generation: UUID) -> tuple[Rewritten, list[StateFile]]:
    """The definition of then with the name and the images that the domain has now, and what lies beside it.

    Raises Corrupt, Failed where the domain is another one.
    """
    then = files[DEFINITION].decode(errors="replace")
    here, was = parse_domain(now), parse_domain(then)
    if here.uuid != was.uuid:
        what = f"{here.name} was defined anew since: its UUID was {was.uuid}, and is {here.uuid}."
        raise Failed(what, on=here.name, safe="Its disks are set back.", do=[_BY_HAND])
    images = {disk.target: disk for disk in here.disks if disk.is_written}
    placed = {disk.target: _placed(images.get(disk.target)) for disk in was.disks if disk.is_written}
    made = rewritten(then, Changes(placed, generation, name=here.name, nvram=here.nvram or was.nvram))
    states: list[StateFile] = []
    path = here.nvram or was.nvram
    if path is not None and NVRAM in files:
        states.append(Variables(path, files[NVRAM]))
    if was.emulated_tpm and TPM in files:
        states.append(TpmState(str(Path(LIBVIRT_STATE) / "swtpm" / here.uuid), files[TPM]))
    return made, states


def _placed(image: DomainDisk | None) -> Placement:
    if image is None:
        return Without.gone
    return DeviceSource(image.source) if image.kind == "block" else FileSource(image.source, image.format or "raw")
