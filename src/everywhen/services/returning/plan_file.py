# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recovery plan: which VMs come back, in which order, and what each waits for; a file that people write (TOML 1.0).

[default]                        # for all VMs that do not say otherwise
define = "qemu:///system"        # libvirt of this host; needed
when = "latest"                  # of all VMs that name no moment of their own
storage = "ssd"                  # as --storage; several: ["vda=ssd", "vdb=/srv/big/"]
network = "as-before"            # as --network
as = "original"                  # or new, files
start = true                     # usual
within = "5m"                    # how long a wait may take; usual

[[vm]]                           # in the order in which they come back
moment = "dc1"                   # VM[@WHEN]; needed
name = "dc1-b"                   # of the domain; else as it was. Also: as, storage, network, machine, start, within
wait = "tcp:192.0.2.10:389"      # or agent, console; without: the next one follows at once
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from everywhen.services.addresses import Address, parse_address
from everywhen.services.ages import MINUTE, parse_span
from everywhen.services.failures import WrongUsage
from everywhen.services.groups import parse_group
from everywhen.services.returning.wishes import As
from everywhen.services.spelling import nearest

_SHARED = ("storage", "network", "as", "start", "within")
_DEFAULT = ("define", "when", *_SHARED)
_VM = ("moment", "name", "machine", "wait", *_SHARED)
_WITHIN = 5 * MINUTE
"""As with `restore --start`."""
_PORT = re.compile(r"tcp:(\[[0-9A-Fa-f:.%a-z]+\]|[^:\[\]\s]+):([0-9]{1,5})", re.ASCII)
_T = TypeVar("_T")


class Sign(StrEnum):
    """By what a VM is known to be up."""

    agent = "agent"
    console = "console"
    tcp = "tcp"


@dataclass(frozen=True, slots=True)
class Wait:
    """For which sign, `within_ns` nanoseconds at most; host and port: of `tcp` alone."""

    sign: Sign
    within_ns: int
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        """As it is written."""
        if self.sign is not Sign.tcp:
            return self.sign.value
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """One VM of a plan. `storage`: as after --storage; `wait`: None where the next one follows at once."""

    address: Address
    kind: As
    name: str | None
    storage: tuple[str, ...]
    network: str | None
    machine: str | None
    start: bool
    wait: Wait | None

    @property
    def key(self) -> str:
        """What it is in this plan: the same after a change of what it waits for, another one when another VM is meant."""
        return f"{self.address} as {self.kind.value} {self.name or ''}".rstrip()


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """VMs in their order, and the libvirt that they go to."""

    uri: str
    vms: tuple[PlannedVm, ...]


def parse_plan(text: str, source: str) -> RecoveryPlan:
    """The plan in a file called `source`. Raises WrongUsage, with all that is wrong."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WrongUsage(f"{source} is no TOML: {error}.", on=source, safe="Nothing was written.") from error
    reader = _Reader()
    plan = reader.plan(found)
    if reader.wrong or plan is None:
        several = f"{len(reader.wrong)} things are wrong in {source}."
        what = f"{source}: {reader.wrong[0]}" if len(reader.wrong) == 1 else several
        do = reader.wrong if len(reader.wrong) > 1 else []
        raise WrongUsage(what, on=source, safe="Nothing was written.", do=do)
    return plan


class _Reader:
    """Collects what is wrong, a sentence each."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def plan(self, found: Mapping[str, Any]) -> RecoveryPlan | None:
        self._keys("the file", found, ("default", "vm"))
        default, listed = found.get("default", {}), found.get("vm", [])
        if not isinstance(default, dict) or not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            self.wrong.append("It has one section [default], and a section [[vm]] for each VM.")
            return None
        self._keys("[default]", default, _DEFAULT)
        uri = self._text("[default]", default, "define")
        if uri is None and "define" not in default:
            self.wrong.append('[default] does not say where to: define = "qemu:///system".')
        when = self._text("[default]", default, "when")
        if not listed:
            self.wrong.append("It names no VM: a section [[vm]] for each.")
        vms = [self._vm(number, one, default, when) for number, one in enumerate(listed, 1)]
        whole = tuple(vm for vm in vms if vm is not None)
        keys = [vm.key for vm in whole]
        self.wrong += [f"{key} is there twice." for key in dict.fromkeys(keys) if keys.count(key) > 1]
        return RecoveryPlan(uri or "", whole)

    def _vm(self, number: int, found: Mapping[str, Any], default: Mapping[str, Any], when: str | None) -> PlannedVm | None:
        where = f"[[vm]] {number}"
        self._keys(where, found, _VM)
        asked = {key: default[key] for key in _SHARED if key in default} | dict(found)
        moment = self._text(where, found, "moment")
        if moment is None:
            self.wrong += [] if "moment" in found else [f'{where} does not say which VM: moment = "web1".']
            return None
        address = self._parsed(where, lambda: _whole_vm(moment, when))
        start = asked.get("start", True)
        if not isinstance(start, bool):
            self.wrong.append(f"{where}: start is true or false.")
            start = True
        wait = self._wait(where, asked)
        if wait is not None and not start:
            self.wrong.append(f"{where} waits for {wait}, and is not started.")
        return None if address is None else PlannedVm(
            address,
            self._kind(where, asked),
            self._text(where, asked, "name"),
            self._storage(where, asked),
            self._text(where, asked, "network"),
            self._text(where, asked, "machine"),
            start,
            wait,
        )  # fmt: skip

    def _keys(self, where: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in found:
            if key not in known:
                close = nearest(key, known)
                meant = f"Meant is {close[0]}?" if close else f"Known are {', '.join(known)}."
                self.wrong.append(f'{where}: there is no key "{key}". {meant}')

    def _text(self, where: str, found: Mapping[str, Any], key: str) -> str | None:
        value = found.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.wrong.append(f"{where}: {key} is a text in quotes.")
            return None
        return value

    def _parsed(self, where: str, parse: Callable[[], _T]) -> _T | None:
        try:
            return parse()
        except WrongUsage as error:
            self.wrong.append(f"{where}: {error.what}")
            return None

    def _kind(self, where: str, asked: Mapping[str, Any]) -> As:
        kind = self._text(where, asked, "as")
        if kind is not None and kind not in list(As):
            close = nearest(kind, list(As))
            self.wrong.append(f'{where}: as = "{kind}"? It is {", ".join(As)}.' + (f" Meant is {close[0]}?" if close else ""))
            return As.original
        return As(kind or As.original)

    def _storage(self, where: str, asked: Mapping[str, Any]) -> tuple[str, ...]:
        value = asked.get("storage", [])
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
            self.wrong.append(f'{where}: storage is a text ("ssd", "/srv/vms/"), or a list of such ("vda=ssd").')
            return ()
        return tuple(words)

    def _wait(self, where: str, asked: Mapping[str, Any]) -> Wait | None:
        within_text, written = self._text(where, asked, "within"), self._text(where, asked, "wait")
        within = _WITHIN if within_text is None else self._parsed(where, lambda: parse_span(within_text)) or _WITHIN
        if written is None:
            return None
        if written in (Sign.agent, Sign.console):
            return Wait(Sign(written), within)
        port = _PORT.fullmatch(written)
        if port is not None and 0 < int(port[2]) < 65536:
            return Wait(Sign.tcp, within, port[1].strip("[]"), int(port[2]))
        close = nearest(written, (Sign.agent, Sign.console))
        self.wrong.append(
            f'{where}: wait = "{written}"? It is agent, console or tcp:HOST:PORT.' + (f" Meant is {close[0]}?" if close else "")
        )
        return None


def _whole_vm(moment: str, when: str | None) -> Address:
    """Raises WrongUsage."""
    if parse_group(moment) is not None:
        raise WrongUsage(f"{moment} is a group: name its VMs, in their order.", on=moment)
    address = parse_address(moment)
    if address.disk is not None or address.path is not None:
        raise WrongUsage(f"{moment} is not a whole VM.", on=moment)
    if address.when is None and when is not None:
        return Address(address.vm, when=when, branch=address.branch)
    return address
