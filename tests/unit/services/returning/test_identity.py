# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a host has and has not, against what a VM wants; each refusal with its way out."""

from __future__ import annotations

from uuid import UUID

import pytest

from everywhen.capture.domain_xml import domain_element
from everywhen.hypervisor.abilities import Abilities, abilities_of
from everywhen.hypervisor.host import KnownDomain
from everywhen.services.returning.device_xml import AsBefore, Connected, Unconnected
from everywhen.services.returning.identity import firmware, free_identity, known_machine, memory, network_for
from everywhen.services.returning.wishes import As, State, Wishes

OURS = UUID("6a0ac472-495a-4ca2-95f7-8bbf4dc88772")
OTHER = "11111111-2222-4333-8444-555555555555"
CAPABILITIES = """<capabilities>
  <host><topology><cells><cell><memory unit='KiB'>1048576</memory></cell></cells></topology></host>
  <guest><arch name='x86_64'><emulator>/usr/bin/q</emulator>
    <machine>pc-q35-7.2</machine><machine canonical='pc-q35-7.2'>q35</machine>
    <domain type='qemu'/><domain type='kvm'><machine>pc-q35-8.0</machine></domain></arch></guest></capabilities>"""
DOMAIN = """<domain type='{0}'><memory unit='GiB'>{2}</memory><os><type arch='{3}' machine='{1}'>hvm</type>{4}</os><devices>
  <interface type='network'><source network='lab'/></interface><interface type='bridge'><source bridge='br-none'/></interface>
  </devices></domain>"""


@pytest.mark.parametrize(
    ("there", "uuid", "words", "ways"),
    [
        ([], OURS, "", []),
        ([KnownDomain("web2", OTHER, runs=True)], OURS, "", []),
        (
            [KnownDomain("web1", str(OURS), runs=True)],
            OURS,
            "already",
            ["rollback web1@p", "--as new", "shut it down, then virsh"],
        ),
        ([KnownDomain("web1", OTHER, runs=False)], OURS, "already", ["--as new", "virsh undefine"]),
        ([KnownDomain("web1", OTHER, runs=False)], None, "already", ["--name NAME"]),
        ([KnownDomain("old", str(OURS), runs=True)], OURS, 'The domain "old" (running) has its UUID', ["--as new"]),
        (
            [KnownDomain("web1", OTHER, runs=False), KnownDomain("old", str(OURS), runs=False)],
            OURS,
            "already",
            ["--as new", "virsh"],
        ),
    ],
)
def test_a_name_and_a_uuid_are_had_once(there: list[KnownDomain], uuid: UUID | None, words: str, ways: list[str]) -> None:
    checks = free_identity(there, "web1", uuid, "everywhen rollback web1@p")
    if not words:
        assert [check.state for check in checks] == [State.passed, State.passed]
        return
    (check,) = checks
    assert (check.state, words in check.what) == (State.failed, True), check
    assert all(way in line for way, line in zip(ways, check.do, strict=True)), check.do


def domain(kind: str = "qemu", machine: str = "q35", gib: int = 1, arch: str = "x86_64", more: str = "") -> str:
    return DOMAIN.format(kind, machine, gib, arch, more)


def abilities() -> Abilities:
    return abilities_of(CAPABILITIES)


@pytest.mark.parametrize(
    ("xml", "wanted", "words"),
    [
        (domain(), None, []),
        (domain(machine="pc-q35-8.0"), None, []),
        (domain(machine="pc-q35-9.0"), "pc-q35-7.2", []),
        (domain(machine="pc-q35-9.0"), None, ["--machine pc-q35-8.0"]),
        (domain(machine="microvm"), None, ["Install a QEMU"]),
        (domain(arch="aarch64"), None, ["apt-get install qemu-system"]),
        (domain(kind="hvf"), None, ["modprobe"]),
        (domain(kind="kvm"), None, []),
    ],
)
def test_a_machine(xml: str, wanted: str | None, words: list[str]) -> None:
    wrong = [
        check for check in known_machine(domain_element(xml), abilities(), wanted, "web1@p") if check.state is State.failed
    ]
    assert [any(word in way for way in check.do) for word, check in zip(words, wrong, strict=True)] == [True] * len(words)


def test_memory() -> None:
    assert memory(domain_element(domain(gib=1)), abilities()) == []
    (check,) = memory(domain_element(domain(gib=2)), abilities())
    assert check.state is State.warned
    (check,) = memory(domain_element(domain().replace("GiB", "loads")), abilities())
    assert check.state is State.failed


def test_networks() -> None:
    root = domain_element(domain())
    assert network_for(root, Wishes(As.new), {}) == (Unconnected(), [])
    assert network_for(root, Wishes(network="none"), {})[0] == Unconnected()
    before, checks = network_for(root, Wishes(), {"lab": True})
    assert before == AsBefore()
    assert [check.state for check in checks] == [State.passed, State.failed], "there is no such bridge"
    assert 'no bridge "br-none"' in checks[1].what
    found, (check,) = network_for(root, Wishes(network="lab"), {"lab": False})
    assert (found, check.state) == (Connected("lab"), State.warned)
    _, (check,) = network_for(root, Wishes(network="lab", start=True), {"lab": False})
    assert (check.state, check.do) == (State.failed, ("virsh net-start lab",))


def test_firmware() -> None:
    assert firmware(domain_element(domain()), None) == (None, None)
    here, other = firmware(domain_element(domain(more=f"<loader type='pflash'>{__file__}</loader>")), None)
    assert (here is not None and here.state, other) == (State.passed, None)
    gone, other = firmware(domain_element(domain(more="<loader type='pflash'>/nowhere/code.fd</loader>")), bytes(4711))
    assert gone is not None
    assert (gone.state, other) == (State.failed, None)
    assert gone.do == ("apt-get install ovmf",)
