# SPDX-License-Identifier: AGPL-3.0-or-later
"""`history`: each version of a file with the moments that show it, and its address gets it back; deleted, and there again."""

from __future__ import annotations

import itertools
from pathlib import Path

from everywhen.block.device import BLOCK_SIZE
from everywhen.repository.ledger import Vm
from everywhen.services.identities import record
from everywhen.storage.posix import PosixStore
from tests.captures import Capture
from tests.guest_images import empty, partitioned, run
from tests.hypervisor import Hypervisor
from tests.laboratory import World
from tests.program import Program
from tests.records import CAPTURED, made

MIB = 1 << 20


def test_versions_of_a_file(tmp_path: Path) -> None:
    image = empty(tmp_path / "disk.img", 8 * MIB)
    (tmp_path / "root" / "docs").mkdir(parents=True)
    run("mkfs.ext4", "-q", "-d", tmp_path / "root", image)
    program = Program(tmp_path).init()
    contents: list[bytes | None] = [None, b"one\n", b"one\n", b"two\x1b[2J\n", None, b"three\n"]
    points: list[str] = []
    for before, after in zip([None, *contents], contents, strict=False):
        (tmp_path / "new").write_bytes(after or b"")
        script = ["cd docs", f"write {tmp_path}/new other{len(points)}"]
        if after != before:
            script += ["rm plan"] if before is not None else []
            script += [f"write {tmp_path}/new plan"] if after is not None else []
        (tmp_path / "script").write_text("\n".join(script))
        run("debugfs", "-w", "-f", tmp_path / "script", image)
        points.append(program.backup("web1", f"vda={image}")["point"])
    done = program.run("history", "web1/vda:/p0/docs/plan", "--json")
    assert done.code == 0
    found = done.document
    versions = found["versions"][::-1]
    assert [(one["point"], one["there"], one["size"]) for one in versions] == [
        (points[0], False, None),
        (points[1], True, 4),
        (points[3], True, 8),
        (points[4], False, None),
        (points[5], True, 6),
    ]
    assert versions[0]["not_before"] is None
    assert versions[2]["not_before"] == versions[1]["last"]
    assert versions[1]["address"] == f"web1/vda@{points[2]}:/p0/docs/plan"
    shown = program.run("history", f"web1/vda@{points[3]}:/p0/docs/plan")
    assert [line.split()[0] for line in shown.out.splitlines()[1:4]] == ["3", "2", "1"], "up to the moment that was named"
    assert "2 versions in 4 recovery points" in shown.out
    assert (" now " in shown.out, " now " in program.run("history", "web1/vda:/p0/docs/plan").out) == (False, True)
    assert "in its memory" in shown.err
    assert program.run("history", "web1/vda:/p0/docs/nothing").code == 6
    gone = program.ok("find", f"web1/vda@{points[4]}:/p0", "PLAN*", "--deleted")
    assert not gone["found"], "names of an ext4 have a case"
    gone = program.ok("find", f"web1/vda@{points[4]}:/p0", "pl*", "--deleted")
    assert [(one["path"], one["address"]) for one in gone["found"]] == [
        ("/p0/docs/plan", f"web1/vda@{points[3]}:/p0/docs/plan")
    ]
    everywhere = program.run("find", "web1/vda:/p0/docs", "plan", "--all-moments").out
    assert [line.endswith("/p0/docs/plan") for line in everywhere.splitlines()[1:3]] == [True, True]
    assert "2 found in 6 recovery points" in everywhere
    assert program.run("history", "web1/vda:/p0/docs").code == 2


def test_versions_of_a_captured_guest(program: Program, tmp_path: Path) -> None:
    """While it runs: the journal has them to the write, and the address of each gets it back."""
    states = state_images(tmp_path, (b"zero\n", b"one\n", b"two\x1b[2J\n", None, b"three\n"))
    (tmp_path / "disk0.raw").write_bytes(states[0])
    with (
        Hypervisor(tmp_path, [len(states[0])]) as hypervisor,
        Capture(program, "web1", hypervisor.qmp, "--pace", "0", "--seal-every", "1h") as capture,
    ):
        capture.followed()
        for before, after in itertools.pairwise(states):
            written(hypervisor, tmp_path, before, after)
        versions = program.ok("history", "web1/vd0:/p0/docs/plan")["versions"]
        (gone,) = program.ok("find", versions[1]["address"].replace("/docs/plan", ""), "plan", "--deleted")["found"]
        capture.stop()
    assert [one["size"] for one in versions] == [6, None, 8, 4, 5]
    assert all(one["writes_after_point"] for one in versions[:-1]), "none of these moments is a point"
    for one, content in zip(versions, ("three\n", "", "two\x1b[2J\n", "one\n", "zero\n"), strict=True):
        done = program.run("cat", one["address"])
        assert (done.code, done.out) == (0 if content else 6, content)
    assert [one["not_before"] for one in versions[:-1]] == [one["last"] for one in versions[1:]]
    assert (gone["path"], gone["to_the_write"], gone["address"]) == ("/p0/docs/plan", True, versions[2]["address"])
    sealed = program.ok("history", "web1/vd0:/p0/docs/plan")["versions"]
    assert [one["from"] for one in sealed] == [one["from"] for one in versions], "the point at its end changes nothing"


def state_images(folder: Path, contents: tuple[bytes | None, ...]) -> list[bytes]:
    """An ext4 with `docs/plan` as each of these, one made of the other in place."""
    image = empty(folder / "state.img", 4 * MIB)
    (folder / "root" / "docs").mkdir(parents=True)
    run("mkfs.ext4", "-q", "-O", "^has_journal", "-d", folder / "root", image)
    states = []
    for before, after in itertools.pairwise((None, *contents)):
        (folder / "new").write_bytes(after or b"")
        script = ["cd docs", *(["rm plan"] if before is not None else [])]
        script += [f"write {folder}/new plan"] if after is not None else []
        (folder / "script").write_text("\n".join(script))
        run("debugfs", "-w", "-f", folder / "script", image)
        states.append(image.read_bytes())
    return states


def written(hypervisor: Hypervisor, folder: Path, before: bytes, after: bytes) -> None:
    """The guest writes what makes one state of the other, in one write."""
    differing = [at for at in range(0, len(before), 512) if before[at : at + 512] != after[at : at + 512]]
    begin, end = differing[0], differing[-1] + 512
    (folder / "pattern").write_bytes(after[begin:end])
    assert hypervisor.io(0, f"write -s {folder}/pattern {begin} {end - begin}") == ""


def test_what_lies_beside_is_no_version(program: Program, tmp_path: Path) -> None:
    """An older capture went on when a later one stood: its points are of another branch."""
    contents = []
    for number in (1, 2, 3):
        image = empty(tmp_path / f"{number}.img", 2 * BLOCK_SIZE)
        (tmp_path / "plan").write_text(f"branch {number}\n")
        run("mkfs.fat", "-f", "1", "-r", "16", image)
        run("mcopy", "-i", image, tmp_path / "plan", "::plan")
        contents.append(image.read_bytes())
    world, store = World(tmp_path), PosixStore(program.repo)
    with world.open(store) as repository:
        record(repository, Vm(CAPTURED, "web1", "web1", "", "", 0))
        first = made(repository, made(repository, None, 1, "1", b""), 1, "1", contents[0])
        made(repository, made(repository, first, 2, "2", b""), 2, "2", contents[1])
        beside = made(repository, first, 1, "1", contents[2])
    told = program.run("history", "web1/vda:/p0/plan", "--json")
    assert told.code == 5, "before each of them the disk was empty"
    assert [one["problem"][:25] for one in told.document["versions"]] == ["", "p0 of vda has no file syst"[:25]] * 2
    addresses = [one["address"] for one in told.document["versions"] if one["there"]]
    assert [program.run("cat", one).out for one in addresses] == ["branch 2\n", "branch 1\n"]
    done = program.run("history", f"web1/vda@{beside.point}:/p0/plan")
    assert done.code == 6
    assert "another branch" in done.err
    assert program.run("cat", f"web1/vda@{beside.point}:/p0/plan").out == "branch 3\n"


def test_what_hides_a_file_ends_its_history_nowhere(program: Program, tmp_path: Path) -> None:
    """Its volume is encrypted, named anew, damaged, or its disk away, and the guest's table has it still."""
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "srv").mkdir()
    (tmp_path / "root" / "etc" / "fstab").write_text("LABEL=data /srv ext4 defaults 0 2\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "plan").write_text("the plan\n")
    root, data = empty(tmp_path / "root.img", 4 * MIB), empty(tmp_path / "data.img", 4 * MIB)
    run("mkfs.ext4", "-q", "-d", tmp_path / "root", root)
    run("mkfs.ext4", "-q", "-L", "data", "-d", tmp_path / "data", data)
    first = program.backup("web1", f"vda={root}", f"vdb={data}")["point"]
    content = data.read_bytes()
    magic, inode_size, label = 1024 + 56, 1024 + 88, 1024 + 120
    for place, change in ((0, b"LUKS\xba\xbe"), (label, b"other"), (magic, b"\0\0"), (inode_size, b"\1\0"), (0, None)):
        if change is not None:
            data.write_bytes(content[:place] + change + content[place + len(change) :])
            damaged = program.backup("web1", f"vda={root}", f"vdb={data}")["point"]
        else:
            program.backup("web1", f"vda={root}")
        versions = program.ok("history", "web1:/srv/plan")["versions"]
        assert [one["there"] for one in versions] == [False, True], (place, change)
        assert versions[1]["address"] == f"web1@{first}:/srv/plan"
    (gone,) = program.ok("find", "web1", "plan", "--deleted")["found"]
    assert gone["address"] == f"web1@{first}:/srv/plan"
    alone = program.run("history", f"web1/vdb@{damaged}:/p0/plan", "--json").document["versions"][-1]
    assert program.run("cat", alone["address"]).out == "the plan\n"


def test_what_happens_beside_a_file_opens_nothing(program: Program, tmp_path: Path) -> None:
    """Neither counters of the file system, which are where other disks have a table, nor those of a partition."""
    (tmp_path / "root" / "docs").mkdir(parents=True)
    (tmp_path / "root" / "other").mkdir()
    (tmp_path / "root" / "docs" / "plan").write_text("the plan\n")
    image = empty(tmp_path / "disk.img", 8 * MIB)
    disk = partitioned(tmp_path / "partitioned.img", image)
    run("mkfs.ext4", "-q", "-b", "4096", "-d", tmp_path / "root", image)
    for number in range(4):
        (tmp_path / "script").write_text(f"cd other\nwrite {tmp_path}/script {number}")
        run("debugfs", "-w", "-f", tmp_path / "script", image)
        with disk.open("r+b") as file:
            file.seek(MIB)
            file.write(image.read_bytes())
        program.backup("web1", f"vda={image}", f"vdb={disk}")
    for where in ("web1/vda:/p0", "web1/vdb:/p1"):
        found = program.ok("history", f"{where}/docs/plan")
        assert (found["points"], found["opened"], len(found["versions"])) == (4, 1, 1)
        assert program.ok("find", f"{where}/docs", "*", "--deleted")["opened"] == 1
