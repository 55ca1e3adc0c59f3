# SPDX-License-Identifier: AGPL-3.0-or-later
"""Asking a capture that runs on this host for something, and what a user is told when that does not work."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.control_socket import NAME, Killed, NoAnswer, NobodyThere, ask
from everywhen.interfaces.failed_capture import noted
from everywhen.repository.epochs import latest_claim
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.failures import Failed, Failure, NotAllowed, NotFound, WrongUsage
from everywhen.services.naming import is_name
from everywhen.services.protect import capture_states
from everywhen.services.protect.captured import FAILED, KILLED, SILENT, Captured
from everywhen.services.spelling import nearest
from everywhen.services.times import local_time
from everywhen.storage.base import StorageError

_NOT_DONE = {"mark": "No mark was made.", "pause": "It was not paused."}
"""What is safe, by the wish that failed."""
LOOK_S = 2.0
"""So long a capture may take to say how it stands; it does that beside its work."""


def ask_capture(context: Context, vm: str, request: Json) -> Json:
    """What the capture of that VM answers. Raises NotFound, NotAllowed, WrongUsage, Failed."""
    if not is_name(vm):
        raise WrongUsage(f'"{vm}" is not a name for a VM: use a-z, 0-9, dot, dash and underscore.', on=vm)
    try:
        answer = ask(context.state(vm), request)
    except NoAnswer as error:
        if isinstance(error.__cause__, PermissionError):
            raise NotAllowed(f"The capture of {vm} belongs to another user.", on=vm, do=["Try with sudo."]) from error
        raise Failed(f"The capture of {vm} does not answer.", on=vm, do=["everywhen status"]) from error
    except NobodyThere as error:
        raise _nobody(context, vm) from error
    if "error" in answer:
        why = str(answer["error"])
        stop = "" if why.endswith((".", "?")) else "."
        raise Failed(f"{vm}: {why}{stop}", on=vm, safe=_NOT_DONE.get(request["wish"], ""), do=_state_words(context, vm))
    return answer


@contextmanager
def captures_noted(context: Context) -> Iterator[None]:
    """Where the repository cannot be read, whoever asked hears at least how the captures of this host stand."""
    try:
        yield
    except (Failure, StorageError) as error:
        if found := list(_standing(context)):
            error.add_note(f"Captures on this host: {', '.join(found)}.")
        raise


def _standing(context: Context) -> Iterator[str]:
    """Each capture on this host that answers, in a few words."""
    for name in captures(context):
        with suppress(NobodyThere, Corrupt):
            found = Captured.from_json(ask(context.state(name), {"wish": "status"}, patience_s=LOOK_S))
            waits = f"; no recovery point: {found.waiting}" if found.waiting else ""
            yield f"{name} ({found.words(context.zone)}{waits})"


def captured_here(context: Context, repository: Repository, vms: list[Vm]) -> dict[str, Captured]:
    """What the captures of these VMs on this host say that go into the repository, by our names; also that one was killed, or
    ended with an error.

    Raises StorageError.
    """

    def claimed_last(vm: Vm) -> bool:
        last = latest_claim(repository.documents, vm.vm)
        return last is not None and last.holder.host == repository.surroundings.holder.host

    def look(vm: Vm) -> Captured | None:
        try:
            answer = ask(context.state(vm.name), {"wish": "status"}, patience_s=LOOK_S)
            found = Captured.from_json(answer)
        except (NoAnswer, Corrupt) as error:
            cause = error.__cause__ or error
            return Captured(SILENT, 0, getattr(cause, "strerror", None) or str(cause))
        except Killed:
            # Nothing here says into which repository it went. Who claimed last does, and that nobody has taken over elsewhere.
            return Captured(KILLED, 0) if claimed_last(vm) else None
        except NobodyThere:
            failed = noted(context.state(vm.name))
            if failed is None or failed.repository not in ("", repository.id.hex()) or not claimed_last(vm):
                return None
            return Captured(FAILED, failed.since_ns, failed.why)
        return found if answer.get("repository") == repository.id.hex() else None

    with ThreadPoolExecutor(8) as pool:
        return {vm.name: found for vm, found in zip(vms, pool.map(look, vms), strict=True) if found is not None}


def captures(context: Context) -> list[str]:
    """Names of the VMs of which a capture may run on this host."""
    return sorted(path.parent.name for path in context.state_folder().glob(f"*/{NAME}"))


def _nobody(context: Context, vm: str) -> Failure:
    there = [name for name in captures(context) if name != vm]
    close = nearest(vm, there)
    hint = f" Close: {close[0]}." if close else f" Captured are: {', '.join(there)}." if there else ""
    do = [f"Begin one: everywhen protect {vm} --qmp SOCKET (or --libvirt URI)"]
    return NotFound(f"No capture of {vm} runs on this host.{hint}", on=vm, safe="Nothing was done.", do=do)


def _state_words(context: Context, vm: str) -> list[str]:
    """Why it may be that it refuses."""
    try:
        state = ask(context.state(vm), {"wish": "status"}, patience_s=LOOK_S)
    except NobodyThere:
        return []
    since = local_time(state["since_ns"], context.zone)
    match state["state"]:
        case capture_states.DETACHED:
            return [f"It was lost at {since} ({state['why']}) and begins again by itself.", f"At once: everywhen resume {vm}"]
        case capture_states.PAUSED:
            return [f"It is paused since {since}; everywhen resume {vm} ends that."]
        case _:
            return [f"everywhen status {vm}"]
