# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore --plan`: VMs come back in the order of a file; one that is not up in time stops it, and the same command
goes on there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.bootable import bootable, needs_bootable
from tests.guest_agent import needs_agent
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak
from tests.program import Program, await_, ended, same

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20
CONSOLE = """<serial type='pty'/><console type='pty'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"""
PLAN = """
[default]
define = "{uri}"
[[vm]]
moment = "dc1"
wait = "tcp:127.0.0.1:{port}"
within = "{within}"
[[vm]]
moment = "sql1"
{more}
"""


@pytest.fixture
def guests(libvirtd: Libvirtd) -> Iterator[list[Guest]]:
    """With a disk each."""
    with Guest(libvirtd, "dc1", [(MIB, "raw")]) as first, Guest(libvirtd, "sql1", [(MIB, "qcow2")]) as second:
        yield [first, second]


@pytest.fixture
def program(tmp_path: Path, guests: list[Guest]) -> Program:
    """A repository that has both; their host has died."""
    program = Program(tmp_path).init()
    for guest in guests:
        definition = tmp_path / f"{guest.name}.xml"
        definition.write_text(guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        program.backup(guest.name, f"vda={guest.images[0]}", "--config", definition)
        guest.raw.undefine()
        guest.images[0].unlink()
    return program


def names(libvirtd: Libvirtd) -> dict[str, bool]:
    return {one.name(): bool(one.isActive()) for one in libvirtd.connection.listAllDomains()}


def test_vms_come_back_in_their_order(program: Program, guests: list[Guest], libvirtd: Libvirtd) -> None:
    file = program.folder / "plan.toml"
    with ExitStack() as stack:
        door = stack.enter_context(socket.socket())
        door.bind(("127.0.0.1", 0))  # nobody listens yet
        words = {"uri": libvirtd.uri, "port": door.getsockname()[1], "more": "start = false"}
        file.write_text(PLAN.format(within="1s", **words))

        printed = program.run("restore", "--plan", file, "--dry-run")
        assert printed.code == 0, printed
        for part in ("dc1", "sql1", str(guests[1].images[0]), f"wait for tcp:127.0.0.1:{words['port']}", "not started"):
            assert part in printed.out, printed.out
        assert f"restore --plan {file}" in printed.out
        assert printed.out.splitlines()[0].endswith(f"({libvirtd.uri}), from {program.repo}")
        assert names(libvirtd) == {}
        assert not any(guest.images[0].exists() for guest in guests)

        guests[1].images[0].write_bytes(b"somebody's")
        refused = program.run("restore", "--plan", file, "--json")
        assert refused.code == 1
        assert names(libvirtd) == {}, "the second one is in the way: the first one is not begun"
        assert not guests[0].images[0].exists()
        guests[1].images[0].unlink()

        file.write_text(PLAN.format(within="60s", **words))
        killed = program.start("restore", "--plan", file)
        await_(killed, lambda: names(libvirtd) == {"dc1": True})
        killed.kill()
        ended(killed)

        shown = program.run("restore", "--plan", file, "--dry-run")
        assert "goes on with what was begun" in shown.err
        guests[0].raw.destroy()
        xml = guests[0].raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        guests[0].raw.undefine()
        guests[0].images[0].rename(program.folder / "aside")
        anew = program.run("restore", "--plan", file, "--dry-run")
        assert (anew.code, "goes on" in anew.err) == (0, False), "nothing of it is there: it begins anew"
        (program.folder / "aside").rename(guests[0].images[0])
        libvirtd.connection.defineXML(xml)

        file.write_text(PLAN.format(within="1s", **words))
        stopped = program.run("restore", "--plan", file, "--json")
        assert stopped.code == 1
        assert "dc1 is not up" in stopped.error["what"]
        assert "Not begun: sql1" in stopped.error["safe"]
        assert names(libvirtd) == {"dc1": True}

        newer, then = program.folder / "newer.raw", program.folder / "then.raw"
        newer.write_bytes(bytes([7]) * MIB)
        then.write_bytes(bytes(MIB))
        program.backup("sql1", f"vda={newer}", "--config", program.folder / "sql1.xml")
        door.listen()
        file.write_text(PLAN.format(within="20s", **words))
        went_on = program.ok("restore", "--plan", file)
        first, second = went_on["vms"]
        assert (first["there_already"], first["seen_by"]) == (True, f"127.0.0.1 port {words['port']} answers")
        assert (second["there_already"], second["started"]) == (False, False)
        assert names(libvirtd) == {"dc1": True, "sql1": False}
        same(then, guests[1].images[0], formats=("raw", "qcow2"))  # the moment that was chosen at first, not the newer one
        assert not list(Path(program.environment["EVERYWHEN_STATE"]).glob("_returning/*.json"))

        again = program.run("restore", "--plan", file, "--json")
        assert again.code == 1, "it is carried out: this would be another one"
        assert "things stand in the way" in again.error["what"]


@in_soak
@needs_bootable
@needs_agent
def test_guests_are_waited_for(libvirtd: Libvirtd, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By the console, then by the agent: of one that is started, and of one that runs already."""
    folder = tmp_path_factory.mktemp("disks")
    disks = [bootable(folder / "login", "login"), bootable(folder / "agent", "wait", agent=True)]
    program = Program(tmp_path).init()
    with (
        Guest(libvirtd, "web1", [(MIB, "raw")], more=CONSOLE) as first,
        Guest(libvirtd, "web2", [(MIB, "raw")], more=CONSOLE) as second,
    ):
        for guest, disk in zip((first, second), disks, strict=True):
            xml = guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            (tmp_path / f"{guest.name}.xml").write_text(xml.replace("32768</", "262144</"))
            program.backup(guest.name, f"vda={disk}", "--config", tmp_path / f"{guest.name}.xml")
            guest.raw.undefine()
            guest.images[0].unlink()
        file = tmp_path / "plan.toml"
        plan = f'[default]\ndefine = "{libvirtd.uri}"\n[[vm]]\nmoment = "web1"\nwait = "console"\n'
        plan += '[[vm]]\nmoment = "web2"\nwait = "agent"\nwithin = "{}"\n'
        file.write_text(plan.format("1s"))
        stopped = program.run("restore", "--plan", file, "--json").error
        assert stopped["what"].startswith("web2 is not up")
        assert "web1 (login prompt)" in stopped["safe"]
        file.write_text(plan.format("2m"))
        done = program.ok("restore", "--plan", file)
        assert [vm["there_already"] for vm in done["vms"]] == [True, True]
        assert done["vms"][0]["seen_by"].startswith("it ran already")
        assert done["vms"][1]["seen_by"] == "guest agent"


def test_a_wrong_plan_is_refused_at_once(tmp_path: Path) -> None:
    program = Program(tmp_path)
    (tmp_path / "plan.toml").write_text('[default]\ndefine = "qemu:///system"\n[[vm]]\nmomnt = "dc1"\nmoment = "dc1"\n')
    done = program.run("restore", "--plan", "plan.toml", "--json")
    assert (done.code, done.error["code"]) == (2, "wrong_usage")
    assert 'there is no key "momnt". Meant is moment?' in done.error["what"]
    assert program.run("restore", "--plan", "plan.toml", "--start").code == 2
    assert program.run("restore").code == 2
    assert program.run("restore", "--plan", "none.toml", "--json").error["code"] == "not_found"
