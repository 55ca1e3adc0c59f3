# SPDX-License-Identifier: AGPL-3.0-or-later
"""A definition rewritten: what must change does, and nothing else."""

from __future__ import annotations

from uuid import UUID
from xml.etree import ElementTree as ET

import pytest

from everywhen.capture.domain_xml import domain_element
from everywhen.formats.errors import Corrupt
from everywhen.services.returning.definition import Changes, Copy, Genid, rewritten
from everywhen.services.returning.device_xml import Connected, Unconnected, networks_of
from everywhen.services.returning.disk_xml import (
    DeviceSource,
    FileSource,
    NbdSource,
    Placement,
    Without,
    disks_of,
)

UUID_THEN = "6a0ac472-495a-4ca2-95f7-8bbf4dc88772"
FRESH = UUID("11111111-2222-4333-8444-555555555555")
GENERATION = UUID("99999999-8888-4777-8666-555555555555")
WINDOWS = """<metadata><libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
    <libosinfo:os id="http://microsoft.com/win/2k22"/></libosinfo:libosinfo></metadata>"""
DOMAIN = f"""<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name><uuid>{UUID_THEN}</uuid><memory unit='MiB'>256</memory>
  <sysinfo type='smbios'><system><entry name='uuid'>{UUID_THEN}</entry><entry name='serial'>a1</entry></system></sysinfo>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader type='pflash'>/old/code.fd</loader>
    <nvram template='/old/vars.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'/>
      <source file='/images/web1.qcow2' index='2'/>
      <backingStore type='file'><format type='qcow2'/><source file='/images/base.qcow2'/></backingStore>
      <target dev='vda' bus='virtio'/><serial>disk-a</serial><alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/iso/debian.iso'/>
      <target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='volume' device='disk'><source pool='ssd' volume='web1-b'/><target dev='vdb' bus='virtio'/></disk>
    <interface type='network'><mac address='52:54:00:aa:bb:cc'/>
      <source network='default' portid='{UUID_THEN}' bridge='virbr0'/>
      <target dev='vnet3'/><model type='virtio'/><alias name='net0'/><address type='pci' bus='0x01'/></interface>
    <serial type='pty'><source path='/dev/pts/3'/><target port='0'/><alias name='serial0'/></serial>
    <console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/><target type='serial' port='0'/></console>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-web1/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <graphics type='vnc' port='5901' autoport='no' passwd='hidden'/>
    <hostdev mode='subsystem' type='pci'>
      <source><address domain='0x0000' bus='0x65' slot='0x00' function='0x1'/></source></hostdev>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x0951'/><product id='0x1666'/></source></hostdev>
  </devices>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+105</label><imagelabel>+64055:+105</imagelabel></seclabel>
  <seclabel type='none' model='selinux'/>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline></domain>"""
DISKS: dict[str, Placement] = {"vda": FileSource("/new/a.raw", "raw"), "vdb": DeviceSource("/dev/vg/b")}


def after(changes: Changes, xml: str = DOMAIN) -> ET.Element:
    return domain_element(rewritten(xml, changes).xml)


def one(root: ET.Element, path: str) -> ET.Element:
    (found,) = root.findall(path)
    return found


def test_the_original_keeps_who_it_is_and_where_its_hardware_was() -> None:
    made = rewritten(DOMAIN, Changes(DISKS, GENERATION))
    root = domain_element(made.xml)
    assert (made.name, str(made.uuid)) == ("web1", UUID_THEN)
    assert root.findtext("uuid") == UUID_THEN
    assert one(root, "devices/interface/mac").get("address") == "52:54:00:aa:bb:cc"
    assert one(root, "devices/interface/source").attrib == {"network": "default"}
    assert one(root, "devices/disk[1]/address").get("bus") == "0x04"
    assert one(root, "devices/disk[1]/serial").text == "disk-a"
    assert one(root, "devices/graphics").attrib == {"type": "vnc", "port": "5901", "autoport": "no", "passwd": "hidden"}
    assert len(root.findall("devices/hostdev")) == 2
    assert {
        "starts only where there is the PCI device 0000:65:00.1",
        "starts only where there is the USB device 0951:1666",
    } <= set(made.remarks)
    assert "xmlns:qemu=" in made.xml, "the prefix that people know"
    assert root.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline") is not None


def test_what_only_a_running_domain_has_is_gone() -> None:
    root = after(Changes(DISKS, GENERATION))
    assert root.get("id") is None
    assert root.findall(".//alias") == []
    assert [label.get("model") for label in root.findall("seclabel")] == ["selinux"]
    assert root.find("devices/interface/target") is None
    assert root.find("devices/serial/source") is None
    assert root.find("devices/channel/source") is None
    assert one(root, "devices/console").get("tty") is None
    ours = DOMAIN.replace("virtio-disk0", "ua-mine").replace("vnet3", "web1-lan")
    assert one(after(Changes(DISKS, GENERATION), ours), ".//alias").get("name") == "ua-mine", "a user's name stays"
    assert one(after(Changes(DISKS, GENERATION), ours), "devices/interface/target").get("dev") == "web1-lan"


def test_disks_are_where_they_are_now() -> None:
    more = {**DISKS, "sda": Without.empty}
    root = after(Changes(more, GENERATION))
    first, medium, second = root.findall("devices/disk")
    assert [child.tag for child in first] == ["driver", "source", "target", "serial", "address"]
    assert one(first, "source").attrib == {"file": "/new/a.raw"}
    assert one(first, "driver").attrib == {"name": "qemu", "type": "raw", "cache": "none", "io": "native"}
    assert (second.get("type"), one(second, "source").attrib) == ("block", {"dev": "/dev/vg/b"})
    assert one(second, "driver").get("type") == "raw"
    assert medium.find("source") is None
    assert after(Changes(DISKS, GENERATION)).findall("devices/disk")[1].find("source") is not None, "what is not named stays"
    assert len(after(Changes({**DISKS, "sda": Without.gone}, GENERATION)).findall("devices/disk")) == 2


def test_a_disk_may_be_an_export() -> None:
    disk = after(Changes({**DISKS, "vda": NbdSource("/run/a.sock", "web1/vda@latest")}, GENERATION)).findall("devices/disk")[0]
    assert disk.get("type") == "network"
    assert one(disk, "source").attrib == {"protocol": "nbd", "name": "web1/vda@latest"}
    assert one(disk, "source/host").attrib == {"transport": "unix", "socket": "/run/a.sock"}
    assert one(disk, "driver").attrib == {"name": "qemu", "type": "raw", "cache": "none"}


def test_a_copy_is_another_one() -> None:
    more = Copy(FRESH, lambda count: bytes(range(1, count + 1)))
    made = rewritten(DOMAIN, Changes(DISKS, GENERATION, name="web1-test", copy=more, network=Unconnected()))
    root = domain_element(made.xml)
    assert (made.name, made.uuid, made.cards) == ("web1-test", FRESH, 1)
    assert (root.findtext("name"), root.findtext("uuid")) == ("web1-test", str(FRESH))
    assert [entry.text for entry in root.findall("sysinfo/system/entry")] == [str(FRESH), "a1"]
    card = one(root, "devices/interface")
    assert (card.get("type"), one(card, "mac").get("address")) == ("user", "52:54:00:01:02:03")
    assert one(card, "link").get("state") == "down"
    assert (card.find("source"), card.find("target")) == (None, None)
    assert one(card, "address").get("bus") == "0x01", "the guest finds it where it was"
    assert root.findall("devices/hostdev") == []
    assert one(root, "devices/graphics").attrib == {"type": "vnc", "autoport": "yes", "passwd": "hidden"}
    assert "is without the USB device 0951:1666: that is the original's" in made.remarks
    assert any("5901" in remark for remark in made.remarks)


def test_cards_are_connected_where_it_is_asked_for() -> None:
    root = after(Changes(DISKS, GENERATION, network=Connected("lab")))
    assert one(root, "devices/interface").get("type") == "network"
    assert one(root, "devices/interface/source").attrib == {"network": "lab"}
    assert networks_of(root) == [Connected("lab")]
    root = after(Changes(DISKS, GENERATION, network=Connected("br0", "bridge")))
    assert one(root, "devices/interface/source").attrib == {"bridge": "br0"}
    assert networks_of(root) == [Connected("br0", "bridge")]


def test_the_generation_id_is_new_where_there_is_one_and_for_windows() -> None:
    assert rewritten(DOMAIN, Changes(DISKS, GENERATION)).genid is Genid.none
    for xml, became in [
        (DOMAIN.replace("<os>", "<genid>00000000-0000-4000-8000-000000000000</genid><os>"), Genid.changed),
        (DOMAIN.replace("<os>", WINDOWS + "<os>"), Genid.added),
        (DOMAIN.replace("<os>", "<features><hyperv mode='custom'/></features><os>"), Genid.added),
    ]:
        made = rewritten(xml, Changes(DISKS, GENERATION))
        assert made.genid is became
        assert domain_element(made.xml).findtext("genid") == str(GENERATION)
    linux = WINDOWS.replace("microsoft.com/win/2k22", "debian.org/debian/12") + "<features><hyperv mode='custom'/></features>"
    assert rewritten(DOMAIN.replace("<os>", linux + "<os>"), Changes(DISKS, GENERATION)).genid is Genid.none


def test_what_it_starts_from() -> None:
    changes = Changes(DISKS, GENERATION, machine="pc-q35-7.1", loader="/new/code.fd", nvram="/new/v.fd", emulator="/usr/bin/q")
    root = after(changes, DOMAIN.replace("<nvram template", "<nvram type='file' template"))
    assert one(root, "os/type").get("machine") == "pc-q35-7.1"
    assert root.findtext("os/loader") == "/new/code.fd"
    assert (one(root, "os/nvram").text, one(root, "os/nvram").attrib) == ("/new/v.fd", {"template": "/old/vars.fd"})
    assert root.findtext("devices/emulator") == "/usr/bin/q"


def test_disks_that_were_attached_while_it_ran() -> None:
    ran = DOMAIN.replace("'vda'", "'vdz'")
    made = rewritten(
        DOMAIN, Changes({**DISKS, "vdz": FileSource("/z", "raw"), "sdq": FileSource("/q", "raw")}, GENERATION, running=ran)
    )
    added = domain_element(made.xml).findall("devices/disk")[-2:]
    assert [one(disk, "target").attrib for disk in added] == [{"dev": "vdz", "bus": "virtio"}, {"dev": "sdq", "bus": "virtio"}]
    assert [one(disk, "source").get("file") for disk in added] == ["/z", "/q"]
    assert added[0].find("address") is None
    assert {remark.partition(";")[0] for remark in made.remarks if "disk" in remark} == {
        "its disk vdz stood on other images",
        "its disk vdz had been attached while it ran",
        "its disk sdq was in no definition",
    }


def test_what_a_definition_says_of_its_disks() -> None:
    vda, medium, vdb = disks_of(domain_element(DOMAIN))
    assert (vda.name, vda.path, vda.format, vda.volume, vda.is_medium) == ("vda", "/images/web1.qcow2", "qcow2", None, False)
    assert (medium.name, medium.is_medium, medium.readonly) == ("sda", True, True)
    assert (vdb.kind, vdb.path, vdb.volume) == ("volume", "", ("ssd", "web1-b"))


@pytest.mark.parametrize(
    "xml", ["<domain><name>a</name></domain>", f"<domain><uuid>{UUID_THEN}</uuid></domain>", "<pool/>", "<"]
)
def test_what_is_no_definition(xml: str) -> None:
    with pytest.raises(Corrupt):
        rewritten(xml, Changes({}, GENERATION))


def test_a_disk_encrypted_by_qemu_is_in_the_clear_now() -> None:
    by_qemu = "<encryption format='luks'><secret type='passphrase' uuid='1'/></encryption>"
    root = after(Changes(DISKS, GENERATION), DOMAIN.replace("<target dev='vda'", f"{by_qemu}<target dev='vda'"))
    assert root.find("devices/disk/encryption") is None
