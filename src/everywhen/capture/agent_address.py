# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a guest's agent is, as one process tells it to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from everywhen.capture.agent import Agent
from everywhen.capture.agent_socket import AgentSocket
from everywhen.formats.fields import Json, text


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """Where an agent is: behind the unix socket of its channel, or of a domain of libvirt's."""

    socket: str = ""
    uri: str = ""
    domain: str = ""

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """Its fields. Raises Corrupt."""
        return cls(text(value, "socket"), text(value, "uri"), text(value, "domain"))

    def agent(self) -> Agent:
        """It is reached when something is asked of it."""
        if self.socket:
            return AgentSocket(self.socket)
        # Only here: most hosts that have a socket have no libvirt.
        from everywhen.capture.libvirt_agent import LibvirtAgent

        return LibvirtAgent(self.uri, self.domain)
