# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names of ours for VMs and disks (design section 2, ux R5), and the VM that somebody means.

`[a-z0-9][a-z0-9._-]*`, at most 60 characters: they need no quoting in a shell, an address, a path or a URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.spelling import nearest

_OURS = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether `text` is a name of ours."""
    return _OURS.fullmatch(text) is not None


def find_vm(wanted: str, vms: Mapping[str, str], *, where: str) -> str:
    """Our name of the VM that `wanted` names; `vms` maps our names to the hypervisor's, `where` names the repository.

    A name of ours wins over another VM's name at the hypervisor. Raises NotFound with the nearest names, and WrongUsage
    when several VMs have that name at their hypervisors.
    """
    if wanted in vms:
        return wanted
    called = sorted(ours for ours, theirs in vms.items() if theirs == wanted)
    if len(called) > 1:
        raise WrongUsage(f'{len(called)} VMs are called "{wanted}".', on=wanted, do=[f"Say one of: {', '.join(called)}."])
    if called:
        return called[0]
    close = nearest(wanted, [*vms, *vms.values()], limit=3)
    hint = f" Close: {', '.join(close)}." if close else ""
    raise NotFound(f'No VM "{wanted}" in {where}.{hint}', on=wanted, do=["everywhen status"])
