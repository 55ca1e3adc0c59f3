# SPDX-License-Identifier: AGPL-3.0-or-later
"""A definition while its disks are served from a backup, and after they have moved; what is written down of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from everywhen.capture.domain_xml import domain_element
from everywhen.services.failures import Damage
from everywhen.services.instant.production import on_server, on_storage
from everywhen.services.instant.record import Record, Recorded, Target

XML = """<domain type='kvm'><name>web1</name><devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' error_policy='report' rerror_policy='ignore' io='native'/>
        <source file='/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>
        <source file='/b.raw'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw' error_policy='report'/><target dev='sda' bus='sata'/></disk>
    </devices></domain>"""
RECORD = Record(
    asked="web1@-10m",
    moment="web1@p-000000000000",
    parent="p-000000000001",
    vm="7" * 32,
    repository="ab" * 16,
    uri="qemu:///system",
    uuid="u",
    name="web1",
    xml=XML,
    policies={"vda": {"error_policy": "report"}},
    targets={"vda": Target("/a.qcow2", "qcow2")},
    states=("/nvram",),
)


def drivers(xml: str) -> list[dict[str, str]]:
    return [dict(driver.attrib) for driver in domain_element(xml).iterfind("devices/disk/driver")]


def test_disks_that_do_not_answer_stop_the_guest_until_they_have_moved() -> None:
    served, policies = on_server(XML, "/run/nbd.sock", {"vda": 1, "vdb": 1})
    vda, vdb, sda = drivers(served)
    assert vda == {"name": "qemu", "type": "raw", "error_policy": "stop"}
    assert vdb == {"name": "qemu", "type": "raw", "cache": "none", "error_policy": "stop"}
    assert sda == drivers(XML)[2]
    sources = [source.attrib for source in domain_element(served).iterfind("devices/disk/source")]
    assert sources == [{"protocol": "nbd", "name": "vda"}, {"protocol": "nbd", "name": "vdb"}]
    moved = drivers(on_storage(served.replace("</driver>", ""), policies))
    assert {key: moved[0][key] for key in ("error_policy", "rerror_policy")} == {
        "error_policy": "report",
        "rerror_policy": "ignore",
    }
    assert "error_policy" not in moved[1]


def test_what_is_written_down_is_found_again(tmp_path: Path) -> None:
    assert Recorded.found(tmp_path) is None
    recorded = Recorded.begun(tmp_path, RECORD)
    recorded.suspended(by_us=True)
    again = Recorded.found(tmp_path)
    assert again is not None
    assert again.now == recorded.now == replace(RECORD, suspended=True)
    again.over()
    again.over()
    assert Recorded.found(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"targets": {"vda": {}}}'])
def test_what_cannot_be_read_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "instant.json").write_text(content)
    with pytest.raises(Damage, match="cannot be read"):
        Recorded.found(tmp_path)
