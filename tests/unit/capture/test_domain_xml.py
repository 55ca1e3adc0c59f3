# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a domain's XML says: which disks belong into a point, which cannot be seen, and where the rest of a VM is."""

from __future__ import annotations

import pytest

from everywhen.capture.domain_xml import DomainDisk, parse_domain
from everywhen.formats.errors import Corrupt

RUNNING = """<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>Büro &amp; Lager</name>
  <uuid>6a0ac472-495a-4ca2-95f7-8bbf4dc88772</uuid>
  <metadata><app:x xmlns:app='http://example.com/'><disk type='file'/></app:x></metadata>
  <os><loader type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/office_VARS.fd</nvram></os>
  <devices>
    <disk type='file' device='disk' snapshot='external'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/vm/office.snap' index='3'/>
      <backingStore type='file' index='2'>
        <format type='raw'/><source file='/vm/office.img'/><backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>
    </disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/office' index='1'/>
      <target dev='sdb' bus='scsi'/><alias name='ua-data'/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/office'><host name='ceph1'/></source>
      <target dev='vdc' bus='virtio'/><alias name='virtio-disk2'/></disk>
    <disk type='volume' device='disk'><driver name='qemu' type='raw'/><source pool='default' volume='office.raw'/>
      <target dev='vdd' bus='virtio'/><alias name='virtio-disk3'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/><readonly/>
      <alias name='sata0-0-0'/></disk>
    <disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='/vm/boot.img'/>
      <target dev='fda' bus='fdc'/><alias name='fdc0-0-0'/></disk>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/><alias name='tpm0'/></tpm>
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-6a0ac472</label></seclabel>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+105</label></seclabel>
</domain>"""


def one_disk(attributes: str, inside: str) -> DomainDisk:
    xml = f"""<domain><name>a</name><uuid>6a0ac472-495a-4ca2-95f7-8bbf4dc88772</uuid><devices>
        <disk {attributes}><target dev='vda'/>{inside}</disk></devices></domain>"""
    return parse_domain(xml).disks[0]


def test_a_running_domain() -> None:
    domain = parse_domain(RUNNING)
    assert (domain.name, domain.uuid) == ("Büro & Lager", "6a0ac472-495a-4ca2-95f7-8bbf4dc88772")
    assert domain.nvram == "/var/lib/libvirt/qemu/nvram/office_VARS.fd"
    assert domain.emulated_tpm
    assert domain.owner == "+64055:+105"
    shown = [(disk.target, disk.alias, disk.kind, disk.source, disk.format) for disk in domain.disks]
    assert shown == [
        ("vda", "virtio-disk0", "file", "/vm/office.snap", "qcow2"),
        ("sdb", "ua-data", "block", "/dev/vg/office", "raw"),
        ("vdc", "virtio-disk2", "network", "pool/office", "raw"),
        ("vdd", "virtio-disk3", "volume", "default/office.raw", "raw"),
        ("sda", "sata0-0-0", "file", "", "raw"),
        ("fda", "fdc0-0-0", "file", "/vm/boot.img", "raw"),
    ]
    assert [disk.target for disk in domain.disks if disk.is_written] == ["vda", "sdb", "vdc", "vdd"]
    assert not any(disk.is_past_qemu for disk in domain.disks)


def test_a_stored_domain_has_less() -> None:
    domain = parse_domain(
        "<domain><name>a</name><uuid>u</uuid><os><nvram type='file'><source file='/n'/></nvram></os></domain>"
    )
    assert (domain.disks, domain.nvram, domain.emulated_tpm, domain.owner) == ((), "/n", False, "")
    assert parse_domain("<domain><name>a</name><uuid>u</uuid><os><nvram template='/t'/></os></domain>").nvram is None
    assert one_disk("type='file'", "<source file='/a'/>").alias == ""


@pytest.mark.parametrize(
    ("attributes", "inside", "facts"),
    [
        ("type='vhostuser' device='disk'", "<source type='unix' path='/s'/>", (True, False, False)),
        ("type='vhostvdpa' device='disk'", "<source dev='/dev/vhost-vdpa-0'/>", (True, False, False)),
        ("type='block' device='lun'", "<source dev='/dev/sda'/>", (False, False, False)),
        ("type='block' device='disk'", "<source dev='/dev/sda'/><shareable/>", (False, True, False)),
        ("type='file' device='disk'", "<source file='/a'/><transient/>", (False, False, True)),
    ],
)
def test_disks_whose_writes_are_not_all_seen(attributes: str, inside: str, facts: tuple[bool, ...]) -> None:
    disk = one_disk(attributes, inside)
    assert disk.is_written
    assert (disk.is_past_qemu, disk.shareable, disk.transient) == facts


def test_read_only_disks_are_not_captured() -> None:
    assert not one_disk("type='file' device='disk'", "<readonly/><shareable/>").is_written


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain>",
        "<network><name>a</name><uuid>u</uuid></network>",
        "<domain><name>a</name></domain>",
        "<domain><name/><uuid>u</uuid></domain>",
        "<domain><name>a</name><uuid>u</uuid><devices><disk type='file'/></devices></domain>",
        "<!DOCTYPE domain [<!ENTITY a 'aaaa'>]><domain><name>&a;</name><uuid>u</uuid></domain>",
    ],
)
def test_what_is_no_domain_is_refused(xml: str) -> None:
    with pytest.raises(Corrupt):
        parse_domain(xml)
