# SPDX-License-Identifier: AGPL-3.0-or-later
"""Capture through a real libvirtd: its domains are found, their disks tapped, their ends noticed, and all of a VM is kept."""

from __future__ import annotations

import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.capture import bitmaps, leftovers
from everywhen.capture.domain_disks import find_domain_disks, survey_by_target
from everywhen.capture.domain_files import definition_files
from everywhen.capture.domain_xml import parse_domain
from everywhen.capture.export import Pace, exported
from everywhen.capture.libvirt_host import LibvirtHost, LibvirtLate, NoDomain, NotRunning
from everywhen.capture.nodes import DiskNode, NoDisks
from everywhen.capture.qmp import CommandFailed, MonitorError
from everywhen.capture.reception import Reception
from everywhen.capture.socket_access import ProcessUser, let_connect, let_into
from everywhen.capture.spool_reader import read_spooled, spool_files
from everywhen.capture.survey import survey
from everywhen.capture.tap import Tap
from everywhen.formats.ids import PointId
from everywhen.formats.keyslot import Keyset
from everywhen.formats.segment import WRITE, SegmentHeader
from everywhen.repository.keys.cipher import Cipher
from everywhen.repository.keys.segment_keys import open_segment
from tests.hypervisor import eventually
from tests.libvirtd import Guest, Libvirtd
from tests.spools import sink_order

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20
REPOSITORY = bytes(16)
KEYSET = Keyset(b"n" * 32, {})


@pytest.fixture
def guest(libvirtd: Libvirtd, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with Guest(libvirtd, request.node.name[:40], [(8 * MIB, "raw"), (4 * MIB + 4096, "qcow2")]) as made:
        made.start()
        yield made


@contextmanager
def received(guest: Guest, disks: list[DiskNode]) -> Iterator[Reception]:
    """A sink for these disks, which QEMU is let to."""
    spool, sockets = guest.folder / "spool", guest.folder / "sockets"
    spool.mkdir(exist_ok=True)
    sockets.mkdir(mode=0o700, exist_ok=True)
    user = ProcessUser.of_label(guest.domain.parsed(running=True).owner)
    let_into(sockets, user)
    order = sink_order(spool, [disk.size for disk in disks], KEYSET, repository=REPOSITORY)
    with Reception(sockets / "sink", order) as reception:
        let_connect(reception.socket_path, user)
        yield reception


def opener(header: SegmentHeader) -> Cipher:
    return open_segment(KEYSET, REPOSITORY, header.cipher, header.generation, header.key)


def writes(folder: Path) -> list[tuple[int, int, int]]:
    """(disk, offset, length) of what was spooled."""
    found = []
    for file in spool_files(folder):
        for group, _ in read_spooled(file, opener, last=True):
            columns = zip(
                group.kinds.tolist(), group.disks.tolist(), group.offsets.tolist(), group.lengths.tolist(), strict=True
            )
            found += [(disk, offset, length) for kind, disk, offset, length in columns if kind == WRITE]
    return found


def test_every_write_comes_through(guest: Guest) -> None:
    with guest.monitor() as monitor:
        disks = find_domain_disks(monitor, guest.domain.parsed(running=True))
        assert [(disk.device, disk.size) for disk in disks] == [("vda", 8 * MIB), ("vdb", 4 * MIB + 4096)]
        with received(guest, disks) as reception:
            taps = [Tap(monitor, disk, number) for number, disk in enumerate(disks)]
            for tap in taps:
                tap.attach(str(reception.socket_path))
            guest.write(0, 4096, 8192, 1)
            guest.write(1, 0, 512, 2)
            again = find_domain_disks(monitor, guest.domain.parsed(running=True))
            assert again == disks, "with a tap on it, too"
            assert taps[0].ended(0) is None
            until = reception.taken
            eventually(lambda: reception.durable >= until, "what was written is durable")
            reception.sink.kill()
            guest.write(0, 0, 4096, 3)
            assert taps[0].ended(10) is not None, "its end is heard of"
        leftovers.clear(monitor, answered=False)
    assert guest.ours() == set()
    assert writes(guest.folder / "spool")[:2] == [(0, 4096, 8192), (1, 0, 512)]


def test_a_disk_is_read_beside_its_guest(guest: Guest) -> None:
    guest.write(1, 65536, 4096, 7)
    with guest.monitor() as monitor:
        disk = find_domain_disks(monitor, guest.domain.parsed(running=True))[1]
        point = PointId("p-" + "2" * 12)
        bitmaps.begin(monitor, {disk.node: "vdb"}, point)
        guest.write(1, MIB, 512, 8)
        recording = bitmaps.recordings(monitor, disk.node)[0]
        bitmaps.freeze(monitor, disk.node, recording)
        sockets = guest.folder / "sockets"
        sockets.mkdir(mode=0o700)
        let_into(sockets, ProcessUser.of_label(guest.domain.parsed(running=True).owner))
        pace = Pace(0, lambda: 0.0, lambda _: None)
        with exported(monitor, disk, str(sockets / "export"), pace, bitmaps.FROZEN) as device:
            assert device.read(0, device.size) == guest.content(1)
            assert device.dirty(bitmaps.FROZEN) == [(MIB, MIB + 65536)]
        bitmaps.remove(monitor, disk.node, bitmaps.FROZEN, recording.name)
    assert guest.ours() == set()


def test_what_qemu_refuses_is_told_as_it_says_it(guest: Guest) -> None:
    with guest.monitor() as monitor:
        with pytest.raises(CommandFailed, match="command everywhen-nonsense has not been found") as refused:
            monitor.execute("everywhen-nonsense")
        assert refused.value.kind == "CommandNotFound"
        assert monitor.execute("query-status")["status"] == "prelaunch"
        with pytest.raises(LibvirtLate, match="within 0 s"):
            monitor.execute("query-status", timeout=0)


@pytest.mark.parametrize(("end", "why"), [("destroy", "ended from outside"), ("managedSave", "saved to a file")])
def test_the_end_of_a_vm_is_heard_of(guest: Guest, end: str, why: str) -> None:
    with guest.monitor() as monitor:
        assert monitor.next_event(0) is None
        getattr(guest.raw, end)()
        with pytest.raises(MonitorError, match=why):
            monitor.next_event(10, lambda _: False)
        with pytest.raises(MonitorError):
            monitor.execute("query-status")
    with pytest.raises(NotRunning, match="is not running"):
        guest.monitor()
    with pytest.raises(NotRunning):
        guest.domain.xml(running=True)
    if end == "managedSave":
        guest.raw.managedSaveRemove()


def test_a_killed_qemu_is_heard_of(guest: Guest) -> None:
    with guest.monitor() as monitor:
        guest.signal(signal.SIGKILL)
        with pytest.raises(MonitorError, match="the VM has ended"):
            monitor.next_event(10, lambda _: False)


def test_libvirtd_restarted_between(libvirtd: Libvirtd, guest: Guest) -> None:
    monitor = guest.monitor()
    disks = find_domain_disks(monitor, guest.domain.parsed(running=True))
    with received(guest, disks) as reception:
        tap = Tap(monitor, disks[0], 0)
        tap.attach(str(reception.socket_path))
        libvirtd.stop()
        with pytest.raises(MonitorError, match="hung up"):
            monitor.next_event(10, lambda _: False)
        with pytest.raises(MonitorError, match="libvirt: "):
            monitor.execute("query-status")
        monitor.close()
        with pytest.raises(MonitorError, match="sock"):
            LibvirtHost(libvirtd.uri)
        libvirtd.start()
        # The tap went on, and the next monitor has it.
        guest.write(0, 0, 4096, 5)
        eventually(lambda: reception.taken >= 2, "the write is received")
    with guest.monitor() as again:
        leftovers.clear(again, answered=False)
    assert (0, 0, 4096) in writes(guest.folder / "spool")
    assert guest.ours() == set()


def test_no_such_domain(libvirtd: Libvirtd, guest: Guest) -> None:
    with LibvirtHost(libvirtd.uri) as host:
        assert host.domain(guest.name).uuid == host.domain(guest.domain.uuid.upper()).uuid
        with pytest.raises(NoDomain, match=f'"{guest.name[:-1]}"; similar: {guest.name}') as missing:
            host.domain(guest.name[:-1])
        assert missing.value.near == [guest.name]
        with pytest.raises(NoDomain, match=r'"x"$'):
            host.domain("x")


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("qemu+unix:///system?socket=/nonexistent/s", "/nonexistent/s"),
        ("nonsense:///", "nonsense"),
        ("qemu+ssh://other.example.com/system", "on another host"),
    ],
)
def test_no_such_libvirt(uri: str, why: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MonitorError, match=why):
        LibvirtHost(uri)
    assert capfd.readouterr().err == "", "libvirt writes nothing by itself"


def test_the_definition_is_what_was_defined(libvirtd: Libvirtd) -> None:
    variables = "<loader readonly='yes' type='pflash'>{folder}/code.fd</loader><nvram>{folder}/vars.fd</nvram>"
    graphics = "<graphics type='vnc' autoport='yes' passwd='geheim'/>"
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    state = libvirtd.folder / "lib" / "libvirt"
    with Guest(libvirtd, "defined", [(MIB, "raw")], os_more=variables, more=graphics + tpm) as guest:
        (guest.folder / "code.fd").write_bytes(bytes(MIB))
        (guest.folder / "vars.fd").write_bytes(b"variables".ljust(MIB // 2))
        guest.start()
        files = definition_files(guest.domain, state)
        assert sorted(files) == ["domain-running.xml", "domain.xml", "nvram.fd", "tpm-state.tar"]
        assert files["nvram.fd"].startswith(b"variables")
        assert parse_domain(files["domain.xml"].decode()).uuid == guest.domain.uuid
        assert "geheim" in files["domain.xml"].decode(), "secrets too, without which it cannot be defined anew"
        with tarfile.open(fileobj=BytesIO(files["tpm-state.tar"])) as tar:
            kept = tar.extractfile("tpm2/tpm2-00.permall")
            assert kept is not None
            assert kept.read() == (state / "swtpm" / guest.domain.uuid / "tpm2" / "tpm2-00.permall").read_bytes()
        assert definition_files(guest.domain, state) == files, "the same bytes, as long as nothing changes"
        guest.raw.destroy()
        assert set(files) - set(definition_files(guest.domain, state)) == {"domain-running.xml"}
        (guest.folder / "vars.fd").unlink()
        with pytest.raises(MonitorError, match=r"vars\.fd cannot be read: No such file"):
            definition_files(guest.domain, state)


def test_the_definition_it_runs_by_is_kept_too(guest: Guest) -> None:
    live, stored = (guest.domain.xml(running=running) for running in (True, False))
    assert definition_files(guest.domain) == {"domain.xml": stored.encode(), "domain-running.xml": live.encode()}
    assert "virtio-disk0" in live
    assert "virtio-disk0" not in stored


def test_disks_keep_their_names(guest: Guest) -> None:
    def named() -> dict[str, str]:
        with guest.monitor() as monitor:
            return {disk.device: disk.node for disk in find_domain_disks(monitor, guest.domain.parsed(running=True))}

    assert named() == {"vda": "libvirt-2-format", "vdb": "libvirt-1-format"}
    guest.images.append(guest.folder / "vdc.raw")
    guest.formats.append("raw")
    guest.images[2].write_bytes(bytes(MIB))
    guest.raw.attachDeviceFlags(guest.disk_xml(2), libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert named() == {"vda": "libvirt-2-format", "vdb": "libvirt-1-format", "vdc": "libvirt-3-format"}
    guest.raw.destroy()
    guest.raw.detachDeviceFlags(guest.disk_xml(0), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    guest.start()
    assert named() == {"vdb": "libvirt-2-format", "vdc": "libvirt-1-format"}, "what they are on says nothing"


def test_what_only_libvirt_knows_of_a_disk(guest: Guest) -> None:
    xml = guest.domain.xml(running=True)
    with guest.monitor() as monitor:
        told = survey(monitor)
        for more, facts in (("<shareable/>", (True, False)), ("<transient/>", (False, True))):
            domain = parse_domain(xml.replace("<target dev='vda'", f"{more}<target dev='vda'"))
            first, second = survey_by_target(told, domain).disks
            assert (first.disk.device, first.shared, first.transient) == ("vda", *facts)
            assert (second.disk.device, second.shared, second.transient) == ("vdb", False, False)
        another = parse_domain(xml.replace("virtio-disk1", "virtio-disk7"))
        with pytest.raises(NoDisks, match="does not show vdb"):
            find_domain_disks(monitor, another)
        with pytest.raises(NoDisks, match="does not show vdb"):
            survey_by_target(told, another)
        read_only = parse_domain(xml.replace("<target dev='vda'", "<readonly/><target dev='vda'"))
        assert [disk.device for disk in find_domain_disks(monitor, read_only)] == ["vdb"]
        seen = survey_by_target(told, read_only)
        assert [one.disk.device for one in seen.disks] == ["vdb"]
        assert [drive.device for drive in seen.left_out if drive.read_only] == ["vda"]
        assert seen.devices["vdb"] == "virtio-blk-pci"
