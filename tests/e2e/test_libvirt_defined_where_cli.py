# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore --define`: where disks, UEFI variables and a TPM go; what is refused before the first byte."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.capture.domain_xml import domain_element
from everywhen.services.returning.leftovers import Made, identity_of, ledger_of
from tests.hypervisor import QEMU
from tests.libvirtd import Libvirtd
from tests.program import WITHOUT_PRIVILEGE, Done, Program, await_, same

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20
THEIRS = "6a0ac472-495a-4ca2-95f7-8bbf4dc88772"
DISK = """<disk type='file' device='disk'><driver name='qemu' type='{2}'/><source file='{1}'/>
    <target dev='{0}' bus='virtio'/></disk>"""
CARD = "<interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='lab'/></interface>"
UEFI = "<loader readonly='yes' type='pflash'>{}</loader><nvram>{}</nvram>"
OVMF = Path("/usr/share/OVMF")
WITH_FILES = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM


@pytest.fixture(scope="module")
def host() -> Iterator[Libvirtd]:
    """With a network that is active, one that is not, and a pool."""
    with Libvirtd(drivers=("network", "storage")) as running:
        for name in ("lab", "idle"):
            bridged = f"<network><name>{name}</name><forward mode='bridge'/><bridge name='br77'/></network>"
            made = running.connection.networkDefineXML(bridged)
            if name == "lab":
                made.create()
        place = running.folder / "pool"
        place.mkdir(mode=0o711)
        pool = running.connection.storagePoolDefineXML(
            f"<pool type='dir'><name>ssd</name><target><path>{place}</path></target></pool>"
        )
        pool.create()
        yield running


class Backup:
    """A VM with two disks that is in a repository, and was never defined here; `images` is where its definition has them."""

    def __init__(self, folder: Path, host: Libvirtd) -> None:
        self.host = host
        self.program = Program(folder).init()
        self.images = folder / "images"
        self.images.mkdir()
        self.folder = folder
        (folder / "vda").write_bytes(os.urandom(MIB) + bytes(MIB))
        (folder / "vdb").write_bytes(bytes(2 * MIB) + os.urandom(MIB))

    def keep(
        self,
        *,
        devices: str = CARD,
        system: str = "",
        machine: str = "q35",
        kind: str = "qemu",
        files: dict[str, bytes] | None = None,
    ) -> None:
        """Back it up with this definition."""
        disks = DISK.format("vda", self.images / "web.raw", "raw") + DISK.format("vdb", self.images / "web.qcow2", "qcow2")
        xml = f"""<domain type='{kind}'><name>web1</name><uuid>{THEIRS}</uuid><memory unit='MiB'>32</memory>
            <os><type arch='x86_64' machine='{machine}'>hvm</type>{system}</os><features><acpi/></features>
            <devices><emulator>{shutil.which(QEMU)}</emulator>{disks}{devices}</devices></domain>"""
        given: list[str | Path] = []
        for name, content in {"domain.xml": xml.encode(), **(files or {})}.items():
            (self.folder / name).write_bytes(content)
            given += ["--config", self.folder / name]
        self.program.backup("web1", f"vda={self.folder / 'vda'}", f"vdb={self.folder / 'vdb'}", *given)

    def define(self, *more: str | Path, prefix: tuple[str, ...] = ()) -> Done:
        return self.program.run("restore", "web1", "--define", self.host.uri, *more, prefix=prefix)

    def defined(self, *more: str | Path, prefix: tuple[str, ...] = ()) -> Any:
        done = self.define(*more, "--json", prefix=prefix)
        assert done.code == 0, done
        return done.document

    def refused(self, *more: str | Path) -> dict[str, Any]:
        """What it says; nothing is there after it that was not."""
        before = self.there()
        done = self.define(*more, "--json")
        assert done.code, done
        assert self.there() == before
        assert done.error["safe"] == "Nothing was written."
        return done.error

    def there(self) -> tuple[list[str], list[Path]]:
        """Names of domains, files where disks may be."""
        names = sorted(domain.name() for domain in self.host.connection.listAllDomains())
        return names, sorted([*self.images.iterdir(), *(self.host.folder / "pool").iterdir()])

    def xml(self, name: str) -> ET.Element:
        return domain_element(
            self.host.connection.lookupByName(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        )

    def holds(self, disk: str, path: Path, image_format: str) -> None:
        same(self.folder / disk, path, formats=("raw", image_format))


@pytest.fixture
def backup(tmp_path: Path, host: Libvirtd) -> Iterator[Backup]:
    yield Backup(tmp_path, host)
    for domain in host.connection.listAllDomains():
        domain.undefineFlags(WITH_FILES)
    for path in (host.folder / "pool").iterdir():
        path.unlink()


def test_a_new_one_beside_the_original(backup: Backup) -> None:
    backup.keep(system="<boot dev='hd'/>", devices=CARD + "<graphics type='vnc' port='5999' autoport='no' passwd='hidden'/>")
    backup.defined()
    (backup.images / "web.raw").write_bytes(b"the original's")
    before = backup.there()
    asked = ("--as", "new", "--name", "web1-test", "--storage", "ssd", "--storage", f"vdb={backup.images}/")
    tried = backup.define(*asked, "--dry-run")
    assert tried.code == 0, tried
    assert backup.there() == before
    for words in (
        "Nothing was done (--dry-run).",
        "new MAC addresses",
        "host name",
        "✓ name free",
        'pool "ssd"',
        "not connected",
    ):
        assert words in tried.out, tried.out
    assert "5999" in tried.err
    said = backup.defined(*asked)
    assert said["uuid"] != THEIRS
    place = backup.host.folder / "pool" / "web1-test-vda.raw"
    assert said["disks"]["vda"] == {"path": str(place), "format": "raw", "pool": "ssd", "size": 2 * MIB, "bytes_written": MIB}
    backup.holds("vda", place, "raw")
    backup.holds("vdb", backup.images / "web1-test-vdb.qcow2", "qcow2")
    assert (backup.images / "web.raw").read_bytes() == b"the original's"
    root = backup.xml("web1-test")
    assert root.findtext("uuid") == said["uuid"]
    card, screen = root.find("devices/interface"), root.find("devices/graphics")
    assert card is not None
    assert screen is not None
    assert card.get("type") == "user"
    assert [link.get("state") for link in card.findall("link")] == ["down"]
    assert [mac.get("address") for mac in card.findall("mac")] != ["52:54:00:aa:bb:cc"]
    assert (screen.get("autoport"), screen.get("passwd")) == ("yes", "hidden")
    volumes = backup.host.connection.storagePoolLookupByName("ssd").listVolumes()
    assert volumes == ["web1-test-vda.raw"], "libvirt knows it"
    connected = backup.defined("--as", "new", "--network", "lab", "--format", "qcow2")
    assert (connected["name"], connected["network"]) == ("web1-restored", "lab")
    assert (backup.images / "web1-restored-vda.qcow2").exists()
    networks = [source.get("network") for source in backup.xml("web1-restored").iterfind("devices/interface/source")]
    assert networks == ["lab"]


def test_images_that_are_there(backup: Backup) -> None:
    backup.keep()
    there = backup.folder / "there"
    backup.program.restore("web1", there)
    missing = backup.refused("--as", "files", "--storage", f"vda={there / 'web1-vda.raw'}")
    assert (missing["exit"], missing["do"][0]) == (6, "Name it: --storage vdb=PATH")
    said = backup.defined(
        "--as", "files", "--storage", f"vda={there / 'web1-vda.raw'}", "--storage", f"vdb={there / 'web1-vdb.raw'}"
    )
    assert said["uuid"] == THEIRS
    assert [disk["bytes_written"] for disk in said["disks"].values()] == [0, 0]
    found = backup.xml("web1").findall("devices/disk")
    assert [one.get("type") for disk in found for one in disk.findall("driver")] == ["raw", "raw"]
    backup.holds("vda", there / "web1-vda.raw", "raw")
    backup.host.connection.lookupByName("web1").undefine()
    # A guest could have written this: a qcow2 names files of its host.
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", backup.images / "web.raw", str(2 * MIB)], check=True)
    shutil.copy(there / "web1-vdb.raw", backup.images / "web.qcow2")
    looks = backup.refused("--as", "files")
    assert "looks like qcow2, and the definition says raw" in looks["what"]
    small = backup.refused("--as", "files", "--storage", f"vdb={there / 'web1-vda.raw'}", "--format", "raw")
    assert "of the moment 3.1 MB" in str(small["do"])


MORE_CPU = "<cpu mode='custom' match='exact' check='partial'><model fallback='forbid'>EPYC-Milan</model></cpu>"
MISSING = "/nowhere/OVMF_CODE.fd"


def test_what_is_not_here_is_said_at_once_with_each_way_out(backup: Backup) -> None:
    backup.keep(machine="pc-q35-99.1", kind="kvm")
    error = backup.refused("--storage", "vda=sdd", "--storage", "vdb=/nowhere/a.raw", "--network", "lap", "--as", "new")
    assert error["what"] == "5 things stand in the way of web1."
    said = "\n".join(error["do"])
    for what, way in [
        ("There is no machine type pc-q35-99.1 here; the nearest is pc-q35-", "It may start with pc-q35-"),
        ("KVM cannot be used on this host.", "everywhen boot web1@p-"),
        ('There is no pool "sdd" here. Close: ssd.', "Into a pool: --storage vda=POOL, of ssd ("),
        ("There is no folder /nowhere for disk vdb.", "Into a folder: --storage vdb=PATH/"),
        ('There is no network "lap" here. Close: lab.', "Without a connection: --network none"),
    ]:
        assert what in said, said
        assert way in said[said.index(what) :], said
    near = re.search(r"--machine (pc-q35-[0-9.]+)", said)
    assert near
    one = backup.refused("--machine", near[1], "--storage", "ssd")
    assert one["what"] == "KVM cannot be used on this host.", "alone it is said in the first line"


def test_what_only_a_start_needs(backup: Backup) -> None:
    backup.keep(system=f"</os>{MORE_CPU}<os>")
    error = backup.refused(
        "--start", "--network", "idle", "--storage", f"vda={backup.images}/a", "--storage", f"vdb={backup.images}/a"
    )
    said = "\n".join(error["do"])
    for words in (
        "This host's processor is not what the definition of web1 asks for",
        "Define it without --start, then change its processor: virsh edit web1",
        "virsh net-start idle",
        f"Two disks would be {backup.images}/a.",
    ):
        assert words in said, said
    made = backup.defined("--network", "idle")
    warned = [check["what"] for check in made["checks"] if check["state"] == "warned"]
    assert [("virsh edit web1" in what, "virsh net-start idle" in what) for what in warned] == [(False, True), (True, False)]


def test_what_libvirt_would_not_take(backup: Backup) -> None:
    backup.keep(devices="<sound model='horn'/>")
    error = backup.refused()
    assert "libvirt would not take the definition of web1" in error["what"]
    assert "--to DIR/" in error["do"][0]


def test_what_is_there_already(backup: Backup) -> None:
    backup.keep()
    backup.defined()
    every = backup.refused()
    assert "things stand in the way of web1" in every["what"]
    said = "\n".join(every["do"])
    assert f'There is a domain "web1" already (UUID {THEIRS}, off).' in said
    assert "everywhen rollback web1@p-" in said
    assert "--as new --name web1-restored" in said
    assert f"{backup.images / 'web.raw'} exists." in said
    same_uuid = backup.refused("--name", "web2", "--storage", "ssd")
    assert f'The domain "web1" (off) has its UUID {THEIRS}' in same_uuid["what"]


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices are root's")
def test_a_device_is_written_over_where_that_is_said(backup: Backup) -> None:
    backup.keep()
    image = backup.folder / "device"
    image.write_bytes(os.urandom(2 * MIB))
    device = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
    try:
        words = ("--storage", f"vda={device}")
        assert backup.refused(*words)["do"] == ["Overwrite all of it: --overwrite"]
        failed = backup.define(
            *words, "--overwrite", "--format", "raw", "--json", prefix=("prlimit", f"--fsize={2 * MIB + 4096}")
        )
        assert failed.error["code"] == "out_of_space", "of the other disk"
        assert Path(device).is_block_device(), "it was there before"
        assert backup.there() == ([], [])
        said = backup.defined(*words, "--overwrite")
        assert said["disks"]["vda"] == {"path": device, "format": "raw", "pool": None, "size": 2 * MIB, "bytes_written": MIB}
        assert [disk.get("type") for disk in backup.xml("web1").findall("devices/disk")] == ["block", "file"]
        backup.holds("vda", Path(device), "raw")
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_no_room_and_no_definition(backup: Backup) -> None:
    backup.keep()
    with (backup.folder / "vda").open("r+b") as file:
        file.truncate(1 << 42)  # a disk may be larger than what is free: it is thin
    backup.keep()
    wide = backup.define("--dry-run")
    assert wide.code == 0, wide
    assert "▲ space: " in wide.out
    assert "can grow to 4.4 TB" in wide.out
    backup.program.backup("other", f"vda={backup.folder / 'vdb'}")
    done = backup.program.run("restore", "other", "--define", backup.host.uri, "--json")
    assert done.error["exit"] == 6
    assert "has no definition" in done.error["what"]
    far = backup.program.run("restore", "web1", "--define", "qemu+ssh://kvm2/system", "--json")
    assert (far.error["exit"], "--define qemu:///system" in far.error["do"][0]) == (2, True)
    for words in (
        ("web1/vda", "--define", backup.host.uri),
        ("web1", "--to", "x", "--define", backup.host.uri),
        ("web1", "--name", "a"),
        ("web1",),
    ):
        assert backup.program.run("restore", *words, "--json").code == 2


def broken_off(backup: Backup, number: signal.Signals) -> None:
    """While it writes the second disk."""
    process = backup.program.start("restore", "web1", "--define", backup.host.uri)
    await_(process, (backup.images / "web.qcow2.everywhen-partial").exists)
    process.send_signal(number)
    process.communicate()
    assert process.returncode in (130, -signal.SIGKILL), "it was faster than the test"


def test_killed_and_gone_on_with(backup: Backup) -> None:
    with (backup.folder / "vdb").open("wb") as file:  # it takes its time
        for _ in range(16):
            file.write(os.urandom(4 * MIB))
    backup.keep()
    broken_off(backup, signal.SIGINT)
    assert backup.there() == ([], []), "all is taken back"
    broken_off(backup, signal.SIGKILL)
    assert not backup.host.connection.listAllDomains()
    first = backup.images / "web.raw"
    written, content = first.stat(), first.read_bytes()

    other = backup.refused("--storage", "ssd")
    assert "was killed, and has left something" in other["what"]
    assert other["do"][1] == f"Remove it: rm -r {first} {backup.images / 'web.qcow2'}.everywhen-partial"
    first.write_bytes(b"somebody's")
    assert f"{first} exists." in str(backup.refused())

    first.write_bytes(content)
    os.utime(first, ns=(written.st_atime_ns, written.st_mtime_ns))
    said = backup.defined()
    assert [disk["bytes_written"] for disk in said["disks"].values()] == [0, 64 * MIB], "the first one was whole"
    assert first.stat().st_mtime_ns == written.st_mtime_ns
    backup.holds("vdb", backup.images / "web.qcow2", "qcow2")
    assert not list(backup.images.glob("*partial"))


def test_what_a_killed_one_wrote_down_is_believed_as_far_as_it_is_there(backup: Backup) -> None:
    backup.keep()
    said = backup.defined()
    disks = {name: disk["path"] for name, disk in said["disks"].items()}
    state, moment = Path(backup.program.environment["EVERYWHEN_STATE"]), f"web1@{said['point']}"
    made = Made(backup.host.uri, "web1", THEIRS, moment, disks, {name: identity_of(path) for name, path in disks.items()})
    made.defined = True
    with ledger_of(state, backup.host.uri, "web1") as ledger:
        ledger.write(made)  # killed just before it was taken away
    other = ("--storage", "ssd")
    refused = str(backup.refused(*other))
    assert '"web1" is defined already, with all disks' in refused
    assert "rm -r" not in refused, "those are a VM's disks"
    again = backup.defined()
    assert [disk["bytes_written"] for disk in again["disks"].values()] == [0, 0]
    assert not list(state.glob("_returning/*.json"))
    backup.holds("vda", backup.images / "web.raw", "raw")

    backup.host.connection.lookupByName("web1").undefine()
    with ledger_of(state, backup.host.uri, "web1") as ledger:
        ledger.write(made)
    assert "rm -r" in str(backup.refused(*other))
    for path in disks.values():
        Path(path).unlink()
    assert backup.defined(*other)["disks"]["vda"]["bytes_written"] == MIB, "nothing is left of it"


def test_what_was_made_is_taken_back_when_it_fails(backup: Backup) -> None:
    backup.keep()
    # No file may grow larger than the first disk has, as if the file system were full.
    done = backup.define("--format", "raw", "--json", prefix=("prlimit", f"--fsize={2 * MIB + 4096}"))
    assert (done.code, done.error["code"]) == (8, "out_of_space"), done
    assert backup.there() == ([], [])
    assert backup.defined()["disks"]["vda"]["bytes_written"] == MIB, "and nothing is in the way"


def test_what_its_user_may_not_write_is_known_before(backup: Backup) -> None:
    locked = backup.folder / "locked"
    locked.mkdir()
    backup.keep(
        system=UEFI.format(OVMF / "OVMF_CODE_4M.fd", locked / "below" / "VARS.fd"), files={"nvram.fd": bytes(528 << 10)}
    )
    locked.chmod(0o555)
    words = ("--storage", f"vdb={locked}/", "--json")
    done = backup.define(*words, prefix=WITHOUT_PRIVILEGE)
    assert (done.error["code"], done.error["safe"]) == ("not_allowed", "Nothing was written."), done
    said = "\n".join(done.error["do"])
    assert f"This user may not write to {locked}." in said
    assert f"where {locked}/below/VARS.fd belongs" in said
    assert backup.there() == ([], [])


def tpm_tar(secret: bytes) -> bytes:
    """As capture has it."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("tpm2/tpm2-00.permall")
        member.size, member.mode, member.uid, member.gid, member.uname = len(secret), 0o600, 64055, 64055, "libvirt-qemu"
        tar.addfile(member, io.BytesIO(secret))
    return whole.getvalue()


def test_uefi_variables_and_tpm_go_where_libvirt_looks_for_them(backup: Backup) -> None:
    theirs = backup.folder / "web1_VARS.fd"
    variables = bytearray((OVMF / "OVMF_VARS_4M.fd").read_bytes())
    variables[70_000:70_010] = b"a variable"
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    backup.keep(
        system=UEFI.format(MISSING, theirs),
        devices=tpm,
        files={"nvram.fd": bytes(variables), "tpm-state.tar": tpm_tar(b"sealed")},
    )
    inside, swtpm = backup.host.inside, backup.host.folder / "lib" / "libvirt" / "swtpm"
    said = backup.defined(prefix=inside)
    assert theirs.read_bytes() == variables
    assert (swtpm / THEIRS / "tpm2" / "tpm2-00.permall").read_bytes() == b"sealed"
    if os.geteuid() == 0:
        assert (swtpm / THEIRS / "tpm2" / "tpm2-00.permall").stat().st_uid == 64055
    assert any(check["state"] == "warned" and MISSING in check["what"] for check in said["checks"]), "firmware of this host"
    loader = backup.xml("web1").findtext("os/loader")
    assert loader is not None
    assert Path(loader).exists()
    beside = backup.defined("--as", "new", "--storage", "ssd", prefix=inside)
    assert (backup.folder / "web1-restored_VARS.fd").read_bytes() == variables
    assert (swtpm / beside["uuid"] / "tpm2" / "tpm2-00.permall").read_bytes() == b"sealed"

    backup.host.connection.lookupByName("web1").undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    (backup.images / "web.raw").unlink()
    (backup.images / "web.qcow2").unlink()
    variables[70_000:70_010] = b"A variable"
    theirs.write_bytes(variables)
    (swtpm / THEIRS / "tpm2").mkdir(parents=True, exist_ok=True)
    (swtpm / THEIRS / "tpm2" / "tpm2-00.permall").write_bytes(b"another's")
    done = backup.define("--json", prefix=inside)
    said = "\n".join(done.error["do"])
    assert f"{theirs} is there, with other UEFI variables." in said
    assert "another state of a TPM" in said
    assert not list(backup.images.iterdir())
