# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real libvirtd of its own, in namespaces of its own, and domains in software emulation whose processor stands still.

Nothing of the host's libvirt is seen or touched. It takes 0.4 s until it knows its QEMU, and a domain 0.3 s to start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libvirt

from everywhen.capture.libvirt_host import Domain, LibvirtHost, NoDomain
from everywhen.capture.libvirt_monitor import LibvirtMonitor
from everywhen.capture.qmp import MonitorError
from tests.hypervisor import QEMU, eventually, names_of_ours

_SCRIPT = Path(__file__).with_suffix(".sh")


class Libvirtd:
    """A running libvirtd. `folder`: short, since sockets are below it, and all may enter it, since QEMU is another user.

    `host`: it takes itself for a host of that name, so that domains can be migrated there; owners of images it leaves alone.
    `drivers`: what it knows besides QEMU.
    """

    def __init__(self, host: str = "", *, drivers: tuple[str, ...] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lv-"))
        self.folder.chmod(0o711)
        self.qemu_user = "libvirt-qemu" if os.geteuid() == 0 else "root"
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if host:
            command += ["--uts"]
        if os.geteuid() != 0:
            command += ["--user", "--map-root-user"]
        self._errors = (self.folder / "errors").open("ab")
        self._init = subprocess.Popen(
            [*command, "bash", "-eu", str(_SCRIPT), str(self.folder), self.qemu_user, host, "qemu", *drivers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.uri = f"qemu+unix:///system?socket={self.folder}/sockets/libvirt-sock"
        self.host: LibvirtHost | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hang_up()
        if self._init.stdin and self._init.stdout:
            with suppress(BrokenPipeError):
                self._init.stdin.close()
            self._init.wait(20)
            self._init.stdout.close()
        self._errors.close()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start libvirtd, after `stop` too."""
        self._do("start")
        eventually(self._answers, "libvirtd answers")

    def stop(self) -> None:
        """Stop libvirtd in order; its domains run on."""
        self._hang_up()
        self._do("stop")

    @property
    def inside(self) -> tuple[str, ...]:
        """A prefix with which a program sees the files of this host that libvirtd sees, as its folders below /var/lib."""
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", f"--target={self._init.pid}", "--mount", *user)

    @property
    def connection(self) -> Any:
        """libvirt's own object."""
        assert self.host is not None, "it is stopped"
        return self.host.connection

    def _hang_up(self) -> None:
        if self.host is not None:
            self.host.close()
        self.host = None

    def _do(self, word: str) -> None:
        assert self._init.stdin is not None
        assert self._init.stdout is not None
        self._init.stdin.write(f"{word}\n")
        self._init.stdin.flush()
        assert self._init.stdout.readline() == f"{word}\n", (self.folder / "errors").read_text()

    def _answers(self) -> bool:
        try:
            self.host = LibvirtHost(self.uri)
        except MonitorError:
            assert self._init.poll() is None, (self.folder / "errors").read_text()
            return False
        return True


class Guest:
    """A domain with disks of these sizes and formats, called vda, vdb, …, and files of its own in a folder below libvirtd's."""

    def __init__(
        self, libvirtd: Libvirtd, name: str, disks: list[tuple[int, str]], *, os_more: str = "", more: str = ""
    ) -> None:
        self.libvirtd = libvirtd
        self.name = name
        self.folder = libvirtd.folder / name
        self.folder.mkdir(mode=0o755)
        self.formats = [image_format for _, image_format in disks]
        self.images = [self.folder / f"vd{'abcdefgh'[number]}.{kind}" for number, (_, kind) in enumerate(disks)]
        for image, (size, kind) in zip(self.images, disks, strict=True):
            subprocess.run(["qemu-img", "create", "-q", "-f", kind, image, str(size)], check=True)
        self.xml = f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
            <os><type arch='x86_64' machine='q35'>hvm</type>{os_more.format(folder=self.folder)}</os>
            <features><acpi/></features>
            <devices><emulator>{shutil.which(QEMU)}</emulator>
            <controller type='scsi' model='virtio-scsi'/>
            <controller type='pci' model='pcie-root'/>{"<controller type='pci' model='pcie-root-port'/>" * 6}
            {"".join(self.disk_xml(number) for number in range(len(disks)))}{more}
            <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"""
        libvirtd.connection.defineXML(self.xml)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(NoDomain):  # it was undefined, and ended when it was destroyed
            if self.domain.runs:
                self.raw.destroy()
            self.raw.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
        shutil.rmtree(self.folder)

    def disk_xml(self, number: int) -> str:
        """The XML of a disk, as it is defined and attached."""
        image = self.images[number]
        bus = "scsi" if image.stem.startswith("sd") else "virtio"
        return f"""<disk type='file' device='disk'><driver name='qemu' type='{self.formats[number]}'/>
            <source file='{image}'/><target dev='{image.stem}' bus='{bus}'/></disk>"""

    @property
    def domain(self) -> Domain:
        """The domain, anew after a restart of libvirtd."""
        assert self.libvirtd.host is not None, "it is stopped"
        return self.libvirtd.host.domain(self.name)

    @property
    def raw(self) -> Any:
        """libvirt's own object."""
        return self.domain.domain

    def another_disk(self, name: str, size: int) -> str:
        """A raw disk more, `sda` on a SCSI bus or `vdc`: its XML, to be attached."""
        self.images.append(self.folder / f"{name}.raw")
        self.formats.append("raw")
        self.images[-1].write_bytes(bytes(size))
        return self.disk_xml(len(self.images) - 1)

    def monitor(self) -> LibvirtMonitor:
        """Its monitor, as the code under test has one."""
        return LibvirtMonitor.connect(self.libvirtd.uri, self.name)

    def start(self) -> Self:
        """Start it, its processor stopped: it needs no boot device, and takes no time from others."""
        self.raw.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        return self

    def signal(self, number: signal.Signals) -> None:
        """To its QEMU, which is found by its arguments: its number in the namespace is another one."""
        word = f"guest={self.name},".encode()
        pids = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if word in _arguments(path)]
        assert len(pids) == 1, pids
        os.kill(pids[0], number)

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """A monitor command of the test's."""
        with self.monitor() as monitor:
            return monitor.execute(command, arguments)

    def io(self, disk: int, command: str) -> str:
        """A command of qemu-io, as if the guest had sent it to its device."""
        alias = next(one.alias for one in self.domain.parsed(running=True).disks if one.target == self.images[disk].stem)
        device = next(drive["qdev"] for drive in self.execute("query-block") if alias in drive["qdev"].split("/"))
        line = f'qemu-io -d {device} "{command}"'
        return str(self.execute("human-monitor-command", {"command-line": line}))

    def write(self, disk: int, offset: int, length: int, value: int) -> None:
        """Bytes of one value, answered before this returns."""
        said = self.io(disk, f"write -P {value} {offset} {length}")
        assert not said, said

    def ours(self) -> set[str]:
        """See `names_of_ours`."""
        return names_of_ours(self.execute)

    def content(self, disk: int) -> bytes:
        """What the disk holds, as the file that it has now says."""
        source = next(one for one in self.domain.parsed(running=True).disks if one.target == self.images[disk].stem)
        self.io(disk, "flush")  # a format's tables are written late
        raw = self.folder / "content"
        subprocess.run(["qemu-img", "convert", "-U", "-f", source.format, "-O", "raw", source.source, raw], check=True)
        return raw.read_bytes()


def _arguments(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended just now
