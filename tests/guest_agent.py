# SPDX-License-Identifier: AGPL-3.0-or-later
"""The guest of `guest.py` with QEMU's own guest agent in it, Debian's, as `scripts/test-guest` has fetched it."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everywhen.capture.agent_socket import AgentSocket
from tests.guest import KERNEL, Guest, cpio, initramfs
from tests.hypervisor import eventually

_HERE = Path(__file__).parent
_AGENT = KERNEL / "qemu-ga"
_CONSOLE = KERNEL / "virtio_console.ko"
HOOK = "etc/everywhen/hook"

needs_agent = pytest.mark.skipif(
    not (_AGENT.exists() and _CONSOLE.exists() and shutil.which("gcc")), reason="no guest agent (scripts/test-guest) or no gcc"
)


def with_agent(*, hook: bool) -> Callable[[Path], Path]:
    """What the guest boots from: archives of the kernel may follow each other, and what comes later counts."""

    def made(folder: Path) -> Path:
        archive = initramfs(folder)
        program = folder / "agent_init"
        subprocess.run(
            ["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-static", "-o", program, _HERE / "guest_agent.c"], check=True
        )
        ours = program.read_bytes()
        entries = [("guest_init", 0o100755, (folder / "init").read_bytes()), ("init", 0o100755, ours), ("tool", 0o100755, ours)]
        entries += [
            (name, 0o040755, b"")
            for name in ("usr", "usr/sbin", "etc", "etc/everywhen", "lib64", "lib", "lib/x86_64-linux-gnu")
        ]
        entries += [(HOOK, 0o100755, ours)] if hook else []
        entries += [("usr/sbin/qemu-ga", 0o100755, _AGENT.read_bytes())]
        entries += [(path.lstrip("/"), 0o100755, Path(path).read_bytes()) for path in _libraries()]
        entries += [("modules/90-virtio_console.ko", 0o100644, _CONSOLE.read_bytes())]
        with archive.open("ab") as file:
            file.write(cpio(entries))
        return archive

    return made


def _libraries() -> list[str]:
    """What the agent is linked with, of this machine, which runs the same Debian."""
    said = subprocess.run(["ldd", _AGENT], check=True, capture_output=True, text=True).stdout
    return [word for line in said.splitlines() for word in line.split() if word.startswith("/")]


class AgentGuest(Guest):
    """A guest whose agent listens at `agent`."""

    def __init__(self, folder: Path, *, image_format: str = "raw", hook: bool = False) -> None:
        self.agent = folder / "agent.sock"
        more = ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={self.agent},server=on,wait=off"]
        more += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        super().__init__(folder, ramdisk=with_agent(hook=hook), image_format=image_format, more=more)
        try:
            eventually(lambda: self.state() == "thawed", "the agent answers", 30)
        except BaseException:
            self.kill()
            raise

    def ask(self, name: str, arguments: dict[str, Any] | None = None, *, timeout: float = 10.0) -> Any:
        """A command of the agent's, while nobody else talks to it."""
        with AgentSocket(str(self.agent)) as agent:
            return agent.execute(name, arguments, timeout=timeout)

    def state(self) -> str:
        """frozen or thawed."""
        return str(self.ask("guest-fsfreeze-status"))

    def run(self, *words: str) -> str:
        """A program in the guest, which must succeed; what it says."""
        pid = self.ask("guest-exec", {"path": words[0], "arg": list(words[1:]), "capture-output": True})
        ended: dict[str, Any] = {}

        def done() -> bool:
            ended.update(self.ask("guest-exec-status", pid))
            return bool(ended["exited"])

        eventually(done, f"{words} ends", 60)
        said = base64.b64decode(ended.get("out-data", "")) + base64.b64decode(ended.get("err-data", ""))
        assert ended["exitcode"] == 0, (words, said)
        return said.decode()

    def put(self, path: str, content: str) -> None:
        """A file in the guest's memory."""
        handle = self.ask("guest-file-open", {"path": path, "mode": "w"})
        self.ask("guest-file-write", {"handle": handle, "buf-b64": base64.b64encode(content.encode()).decode()})
        self.ask("guest-file-close", {"handle": handle})

    def content(self, path: str) -> str:
        """What a small file in the guest holds."""
        handle = self.ask("guest-file-open", {"path": path, "mode": "r"})
        read = self.ask("guest-file-read", {"handle": handle})
        self.ask("guest-file-close", {"handle": handle})
        return base64.b64decode(read["buf-b64"]).decode()
