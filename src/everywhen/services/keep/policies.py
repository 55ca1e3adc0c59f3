# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which retention policy is in force for a VM, and where it is written down (I-10): in the repository itself.

A VM's own policy is the field `policy` of its record; '' there means: the repository's default, `settings/policy`; where
that was never set, DEFAULT with days ending in UTC. Text in both places: `LINE; zone NAME` or `LINE; zone NAME; by calendar`.

`settings/policy`: `kind` `policy`, `policy` (such a text, or '' for DEFAULT), `set_ns`, `by`.
`settings/delay`: `kind` `delay`, `history`: list of `since_ns`, `delay_ns`, `by`, in the order in which they were set. How
long dropped moments come back follows from all of them (`brakes.py`): the history is what makes lowering slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.fields import Json, text, whole
from everywhen.repository.documents import Documents
from everywhen.repository.ledger import Drop, Ledger, Vm
from everywhen.repository.repository import Repository
from everywhen.repository.space import with_reserve
from everywhen.services.failures import Failed, WrongUsage
from everywhen.services.keep.brakes import DelaySetting, gone_at
from everywhen.services.keep.retention import DEFAULT, Policy, parse_terms
from everywhen.services.times import zone_named
from everywhen.storage.base import ObjectNotFound

POLICY = "settings/policy"
DELAY = "settings/delay"
BUILT_IN = Policy(parse_terms(DEFAULT), zone_named("UTC"))

_DEFAULT = ""
_CALENDAR = "by calendar"
_ZONE = "zone "


@dataclass(frozen=True, slots=True)
class Standing:
    """A policy; `origin`: `own` (set for this VM), `default` (set for the repository), `built in`, `tried` (not in force)."""

    policy: Policy
    origin: str


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of a repository, read once: by VM id, and the default under ''.

    `unclear`: those that cannot be understood here. Nobody is told that they are something else; setting them anew works.
    """

    standing: Mapping[str, Standing]
    unclear: Mapping[str, Failed]

    @property
    def default(self) -> Standing:
        """The policy of VMs without one of their own. Raises Failed."""
        return self._find(_DEFAULT)

    def of(self, vm: Vm) -> Standing:
        """The policy in force for a VM. Raises Failed."""
        return self._find(vm.vm if self.has_own(vm) else _DEFAULT)

    def has_own(self, vm: Vm) -> bool:
        """Whether one was set for this VM."""
        return vm.vm in self.standing or vm.vm in self.unclear

    def trying(self, policies: Mapping[str, Policy]) -> Policies:
        """The same with other policies for some VMs (by id), to see what they would do."""
        tried = {vm: Standing(policy, "tried") for vm, policy in policies.items()}
        return Policies({**self.standing, **tried}, {vm: error for vm, error in self.unclear.items() if vm not in tried})

    def _find(self, key: str) -> Standing:
        if key in self.unclear:
            raise self.unclear[key]
        return self.standing[key]


def write_policy(policy: Policy) -> str:
    """The text that is stored; `read_policy` gives the same policy back."""
    calendar = f"; {_CALENDAR}" if policy.by_calendar else ""
    return f"{policy}; {_ZONE}{policy.zone.key}{calendar}"


def read_policy(stored: str, *, whose: str) -> Policy:
    """Raises Failed: a policy that cannot be understood here must not be replaced by a guess."""
    line, *rest = (part.strip() for part in stored.split(";"))
    zone, by_calendar = "UTC", False
    try:
        for part in rest:
            if part == _CALENDAR:
                by_calendar = True
            elif part.startswith(_ZONE):
                zone = part.removeprefix(_ZONE)
            else:
                raise WrongUsage(f'"{part}" is unknown to this program.')
        return Policy(parse_terms(line), zone_named(zone), by_calendar)
    except WrongUsage as error:
        raise Failed(
            f"The retention policy of {whose} cannot be understood here: {error.what}",
            on=whose,
            safe="Nothing was dropped.",
            do=["Set it anew: everywhen policy set", *error.do],
        ) from error


def read_policies(documents: Documents, vms: list[Vm]) -> Policies:
    """The default and all VMs' own. Raises StorageError."""
    standing: dict[str, Standing] = {_DEFAULT: Standing(BUILT_IN, "built in")}
    unclear: dict[str, Failed] = {}
    stored = {vm.vm: (vm.name, vm.policy, "own") for vm in vms}
    try:
        stored[_DEFAULT] = ("the repository", text(_document(documents, POLICY), "policy", ""), "default")
    except FormatError as error:
        unclear[_DEFAULT] = Failed(
            f"The default retention policy cannot be read: {error}",
            on=POLICY,
            safe="Nothing was dropped.",
            do=["Set it anew: everywhen policy set --default", "everywhen verify"],
        )
    for key, (whose, written, origin) in stored.items():
        if not written:
            continue
        try:
            standing[key] = Standing(read_policy(written, whose=whose), origin)
        except Failed as error:
            unclear[key] = error
    return Policies(standing, unclear)


def set_policy(repository: Repository, vm: Vm, policy: Policy | None) -> None:
    """Give a VM a policy of its own, or None: the default again. Durable on return."""
    ledger = Ledger(repository.documents)
    # Read again: the record may have changed since the catalog was read.
    current = ledger.current(vm)
    ledger.put_vm(replace(current, policy="" if policy is None else write_policy(policy)))


def set_default(repository: Repository, policy: Policy | None) -> None:
    """Set the repository's default, or None: the built-in one again. Durable on return."""
    stored = "" if policy is None else write_policy(policy)
    value = {"kind": "policy", "policy": stored, "set_ns": repository.surroundings.clock(), "by": signature(repository)}
    with_reserve(repository.store, lambda: repository.documents.put(POLICY, value))


def read_delays(documents: Documents) -> list[DelaySetting]:
    """What was ever set about the delay, oldest first. Raises FormatError, StorageError."""
    history = _document(documents, DELAY).get("history", [])
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise Corrupt(f"{DELAY}: field 'history' is not a list of settings")
    return [DelaySetting(whole(entry, "since_ns"), whole(entry, "delay_ns")) for entry in history]


def set_delay(repository: Repository, delay_ns: int) -> list[Drop]:
    """Wish for another delay from now on; gives the drops that come back longer because of it, as they are now.

    The drops are rewritten first: interrupted in between, they come back longer than somebody asked for, never shorter.
    """
    now = repository.surroundings.clock()
    documents = repository.documents
    history = [*read_delays(documents), DelaySetting(now, delay_ns)]
    prolonged = []
    ledger = Ledger(documents)
    for drop in ledger.drops():
        end = gone_at(drop.dropped_ns, history, now_ns=now)
        if now < drop.effective_ns < end:
            longer = replace(drop, effective_ns=end)
            ledger.put_drop(longer)
            prolonged.append(longer)
    entries = _document(documents, DELAY).get("history", [])
    entries.append({"since_ns": now, "delay_ns": delay_ns, "by": signature(repository)})
    with_reserve(repository.store, lambda: documents.put(DELAY, {"kind": "delay", "history": entries}))
    return prolonged


def signature(repository: Repository) -> str:
    """Who we are, for what is written into the repository: `ann@kvm1`."""
    holder = repository.surroundings.holder
    return f"{holder.user}@{holder.host}"


def _document(documents: Documents, name: str) -> Json:
    try:
        return documents.get(name)
    except ObjectNotFound:
        return {}
