# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a guest is made quiet, and let go on: hooks on the host and in the guest, then its file systems, by its agent.

Hooks are called with `freeze` before the file systems are frozen, and with `thaw` after they are thawed, also where something
failed in between. On Windows the agent freezes by VSS, which quiets applications that have a VSS writer.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from everywhen.capture.agent import Agent, AgentError, AgentRefused
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import flag, mapping, text, whole

GUEST_HOOK = "/etc/everywhen/hook"
WINDOWS_HOOK = r"%ProgramData%\everywhen\hook.cmd"
_ANSWER_S = 5.0
FREEZE_S, VSS_S = 10.0, 60.0
"""The file systems are frozen one after another, each when it has written what it had in memory. VSS waits for applications."""
HOOK_S = 30.0
_LOOK_S = 0.05
_LONGEST_WORDS = 200


class NotFrozen(Exception):
    """The guest was not made quiet; says why."""


@dataclass(slots=True)
class Quiet:
    """How quiet a guest is: file systems that are frozen; who said that applications are quiet; hooks that failed, and
    that there are none of."""

    file_systems: int = 0
    said: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    clock: dict[str, int] | None = None
    """As `formats.point.GuestClock`; None where the agent does not tell."""


class Freezing:
    """One freeze of a guest, and its end."""

    def __init__(self, agent: Agent, *, hooks: bool, host_hook: str, clock: Callable[[], int]) -> None:
        """`hooks`: whether any are called; `host_hook`: the host's, '' where there is none; `clock`: the host's, in nanoseconds
        since 1970."""
        self._agent = agent
        self._clock = clock
        self._hooks = hooks
        self._host_hook = host_hook
        self._windows = False
        self._called: list[Callable[[str], str]] = []
        self.quiet = Quiet()
        self.begun = False
        """Whether the agent may have been told to freeze, and has not been heard to have thawed."""

    def prepare(self) -> None:
        """See that the agent answers, and call the hooks. Raises NotFrozen."""
        try:
            state = self._agent.execute("guest-fsfreeze-status", timeout=_ANSWER_S)
            if state != "thawed":
                raise NotFrozen("its file systems are frozen already, by somebody else")
            # Agents older than 2.10 do not know this; they do not freeze by VSS on any Windows that is still in use.
            with suppress(AgentRefused):
                system = self._agent.execute("guest-get-osinfo", timeout=_ANSWER_S)
                self._windows = isinstance(system, dict) and system.get("id") == "mswindows"
            with suppress(AgentRefused):
                self.quiet.clock = self._clocks()
        except AgentError as error:
            raise NotFrozen(str(error)) from error
        if self._hooks:
            if self._host_hook:
                self._call("host hook", self._on_host)
            self._call("guest hook", self._in_guest)

    def _clocks(self) -> dict[str, int] | None:
        """The guest's clock and the host's, asked at once (design 4.10.4)."""
        before = self._clock()
        told = self._agent.execute("guest-get-time", timeout=_ANSWER_S)
        host_ns = (before + self._clock()) // 2
        fits = isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 1 << 63
        return {"host_ns": host_ns, "guest_ns": told} if fits else None

    def freeze(self) -> Quiet:
        """Freeze the file systems. Raises NotFrozen; then too they are to be thawed where `begun`."""
        self.begun = True
        try:
            count = self._agent.execute("guest-fsfreeze-freeze", timeout=VSS_S if self._windows else FREEZE_S)
        except AgentError as error:
            raise NotFrozen(str(error)) from error
        if not isinstance(count, int) or count < 1:
            raise NotFrozen("it has no file system that can be frozen")
        self.quiet.file_systems = count
        if self._windows:
            self.quiet.said.insert(0, "VSS")
        return self.quiet

    def thaw(self) -> int:
        """Let the guest go on; how many file systems were still frozen. Raises AgentError: then try again."""
        count = self._agent.execute("guest-fsfreeze-thaw", timeout=_ANSWER_S, blind=True)
        self.begun = False
        return count if isinstance(count, int) else 0

    def release(self) -> None:
        """Let the applications go on: the hooks that were called, the last one first."""
        while self._called:
            with suppress(AgentError, OSError, _HookFailed):  # each was told once; nothing else can be done for it
                self._called.pop()("thaw")

    def _call(self, name: str, hook: Callable[[str], str]) -> None:
        self._called.append(hook)
        try:
            words = hook("freeze")
            self.quiet.said.append(f"{name} ({words})" if words else name)
        except AgentRefused:
            self.quiet.absent.append(f"there is no {name}, or the agent may not run it")
            self._called.pop()  # it was not begun
        except (AgentError, OSError, _HookFailed) as error:
            self.quiet.failed.append(f"{name}: {error}")

    def _on_host(self, what: str) -> str:
        try:
            done = subprocess.run(
                [self._host_hook, what],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=HOOK_S,
                check=False,
                start_new_session=True,  # Ctrl-C is for `protect`: a hook that ends in the middle leaves applications quiet
            )
        except subprocess.TimeoutExpired:
            raise _HookFailed(f"it did not end within {HOOK_S:g} s") from None
        return _ended(done.returncode, done.stdout)

    def _in_guest(self, what: str) -> str:
        command = ("cmd.exe", ["/c", WINDOWS_HOOK, what]) if self._windows else (GUEST_HOOK, [what])
        arguments = {"path": command[0], "arg": command[1], "capture-output": True}
        try:
            begun = self._agent.execute("guest-exec", arguments, timeout=_ANSWER_S)
            pid = {"pid": whole({"pid": mapping({"": begun}, "").get("pid")}, "pid")}
            end = monotonic() + HOOK_S
            while not flag(state := self._state(pid), "exited"):
                if monotonic() > end:
                    raise _HookFailed(f"it did not end within {HOOK_S:g} s")
                sleep(_LOOK_S)
            said = base64.b64decode(text(state, "out-data", "") or text(state, "err-data", ""))
            return _ended(whole(state, "exitcode", 1), said)
        except (Corrupt, ValueError) as error:
            raise _HookFailed(f"the agent answers otherwise than an agent does: {error}") from error

    def _state(self, pid: dict[str, int]) -> dict[str, Any]:
        return mapping({"": self._agent.execute("guest-exec-status", pid, timeout=_ANSWER_S)}, "")


class _HookFailed(Exception):
    """It ended with an error, or not in time."""


def _ended(code: int, output: bytes) -> str:
    """What a hook that succeeded had to say. Raises _HookFailed."""
    words = " ".join(output[: 4 * _LONGEST_WORDS].decode(errors="replace").split())[:_LONGEST_WORDS]
    if code:
        raise _HookFailed(f"it ended with {code}" + (f": {words}" if words else ""))
    return words
