# SPDX-License-Identifier: AGPL-3.0-or-later
"""A domain's guest agent, through libvirt, which holds the only connection to it (libvirt: libvirt-qemu.h).

All goes through virDomainQemuAgentCommand: what virDomainFSFreeze does is the same command, and hooks have no other way.
"""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

import libvirt
import libvirt_qemu

from everywhen.capture.agent import AgentError, AgentGone, AgentRefused
from everywhen.capture.libvirt_host import LibvirtHost, NoDomain, NotRunning, within
from everywhen.capture.qmp import MonitorError
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, parse_json

_REFUSED = libvirt.VIR_ERR_INTERNAL_ERROR
"""How libvirt passes on an error of the agent's own: `unable to execute QEMU agent command`."""
_MORE_S = 2.0
"""libvirt's own limit comes first: it says more."""


class LibvirtAgent:
    """The agent of a running domain."""

    def __init__(self, uri: str, name: str) -> None:
        self._uri = uri
        self._name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is held."""

    def execute(self, name: str, arguments: Json | None = None, *, timeout: float, blind: bool = False) -> Any:  # noqa: ANN401, ARG002 - JSON; see below
        """See `Agent`. libvirt asks first whether an agent answers: there is no `blind`."""
        message: Json = {"execute": name}
        if arguments:
            message["arguments"] = arguments
        line, limit = json.dumps(message), max(1, round(timeout))
        try:
            # A connection for each command: none outlives libvirtd.
            with LibvirtHost(self._uri) as host:
                domain = host.domain(self._name)
                if not domain.runs:
                    raise NotRunning(f'the domain "{self._name}" is not running')
                answer = within(limit + _MORE_S, lambda: libvirt_qemu.qemuAgentCommand(domain.domain, line, limit, 0))
            return parse_json("the guest agent's answer", str(answer).encode())["return"]
        except (NoDomain, NotRunning) as error:
            raise AgentGone(str(error)) from error
        except (MonitorError, Corrupt, KeyError) as error:
            refused = isinstance(error.__cause__, libvirt.libvirtError) and error.__cause__.get_error_code() == _REFUSED
            raise (AgentRefused if refused else AgentError)(f"{name}: {error}") from error
