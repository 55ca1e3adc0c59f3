# SPDX-License-Identifier: AGPL-3.0-or-later
"""`history`: each version of a file with the moments that show it, and its address gets it back; deleted, and there again."""

from __future__ import annotations

from pathlib import Path

from tests.guest_images import empty, run
from tests.program import Program

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
