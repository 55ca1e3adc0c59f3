# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is done before a moment is looked for: what this host has captured last is brought into the repository."""

from __future__ import annotations

from everywhen.capture.spool_reader import spool_files
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.control_socket import NoAnswer, NobodyThere, ask
from everywhen.services.naming import is_name


def ship_newest(context: Context, vm: str) -> None:
    """Where the VM is captured on this host, have the newest moments brought into the repository; warn where that fails."""
    if not is_name(vm):
        return  # a hypervisor's name, or no name at all
    try:
        why = ask(context.state(vm), {"wish": "ship"}).get("error")
    except NoAnswer:
        why = "its capture does not answer, or belongs to another user"
    except NobodyThere:
        why = (
            "it is in the spool that a capture left on this host: everywhen protect brings it in"
            if left_in_spool(context, vm)
            else ""
        )
    if why:
        context.output.warn(f"{vm}: what was written last is not in the repository yet ({why})")


def left_in_spool(context: Context, vm: str) -> bool:
    """Whether there are files in the spool of a VM that nobody captures here."""
    try:
        return bool(spool_files(context.state(vm) / "spool"))
    except OSError:
        return False  # there is none, or it is another user's
