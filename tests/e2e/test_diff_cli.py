# SPDX-License-Identifier: AGPL-3.0-or-later
"""`diff`: what appeared, vanished, changed and was renamed between two moments; the text of a file; the bytes of disks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.guest_images import content_of, empty, run
from tests.program import Program

MIB = 1 << 20


def written(folder: Path) -> None:
    """What is there before."""
    (folder / "docs").mkdir(parents=True)
    (folder / "old folder").mkdir()
    (folder / "docs" / "plan.txt").write_text("one\ntwo\nthree\n")
    (folder / "docs" / "binary").write_bytes(content_of(1, 5000))
    (folder / "docs" / "touched").write_bytes(content_of(2, 300_000))
    (folder / "docs" / "same").write_text("same")
    (folder / "docs" / "gone").write_text("gone")
    (folder / "old folder" / "inside").write_text("inside")
    (folder / "old folder" / "a file").write_text("to be renamed")
    (folder / "kind").write_text("a file")
    (folder / "evil\x1b[2J").write_text("x\n")
    for path in folder.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))


def changed(folder: Path) -> None:
    """What a guest makes of it."""
    (folder / "docs" / "plan.txt").write_text("one\n2\x1b[31m\nthree\n")
    (folder / "docs" / "binary").write_bytes(content_of(3, 5000))
    os.utime(folder / "docs" / "touched", ns=(10**18, 10**18 + 5))
    (folder / "docs" / "gone").unlink()
    (folder / "docs" / "new").write_text("new")
    (folder / "old folder").rename(folder / "docs" / "new folder")
    (folder / "docs" / "new folder" / "a file").rename(folder / "docs" / "a file.lock")
    (folder / "kind").unlink()
    (folder / "kind").mkdir()
    (folder / "kind" / "within").write_text("y")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """`web1` with two moments of one file system: changed in place with debugfs, where inodes stay what they are."""
    folder = tmp_path_factory.mktemp("diff")
    written(folder / "root")
    image = empty(folder / "disk.img", 24 * MIB)
    run("mkfs.ext4", "-q", "-d", folder / "root", image)
    program = Program(folder).init()
    program.backup("web1", f"vda={image}")
    changes = folder / "changes"
    changed(folder / "root")
    for name in ("plan.txt", "binary", "new"):
        (folder / name).write_bytes((folder / "root" / "docs" / name).read_bytes())
    changes.write_text(
        "\n".join(
            (
                f"cd docs\nrm plan.txt\nwrite {folder}/plan.txt plan.txt",
                f"rm binary\nwrite {folder}/binary binary\nrm gone\nwrite {folder}/new new",
                "sif touched mtime 20010909014641",
                'cd /\nln "old folder" "docs/new folder"\nunlink "old folder"',
                'ln "docs/new folder/a file" "docs/a file.lock"\nunlink "docs/new folder/a file"',
                f"rm kind\nmkdir kind\ncd kind\nwrite {folder}/new within",
            )
        )
    )
    run("debugfs", "-w", "-f", changes, image)
    program.backup("web1", f"vda={image}")
    return program


def moments(program: Program) -> tuple[str, str]:
    second, first = (point["id"] for point in program.ok("points", "web1"))
    return first, second


def test_files_that_appeared_vanished_and_changed(program: Program) -> None:
    first, second = moments(program)
    found = program.ok("diff", f"web1/vda@{first}", f"web1/vda@{second}:/p0")
    told = {(one["what"], one["old_path"], one["path"]) for one in found["differences"]}
    assert told == {
        ("changed", None, "/p0/docs/plan.txt"),
        ("changed", None, "/p0/docs/binary"),
        ("attributes", None, "/p0/docs/touched"),
        ("vanished", None, "/p0/docs/gone"),
        ("appeared", None, "/p0/docs/new"),
        ("renamed", "/p0/old folder", "/p0/docs/new folder"),
        ("renamed", "/p0/old folder/a file", "/p0/docs/a file.lock"),
        ("vanished", None, "/p0/kind"),
        ("appeared", None, "/p0/kind"),
        ("appeared", None, "/p0/kind/within"),
    }
    backwards = program.ok("diff", f"web1/vda@{second}", f"web1/vda@{first}:/p0/docs")
    assert {(one["what"], one["path"]) for one in backwards["differences"]} >= {
        ("appeared", "/p0/docs/gone"),
        ("vanished", "/p0/docs/new folder/inside"),
    }
    shown = program.run("diff", f"web1/vda@{first}", f"web1/vda@{second}:/p0").out
    assert "R /p0/old folder -> /p0/docs/new folder/" in shown
    assert "M /p0/docs/plan.txt  14 -> " in shown


def test_numbers_by_folder(program: Program) -> None:
    first, second = moments(program)
    found = program.ok("diff", f"web1/vda@{first}", f"web1/vda@{second}:/p0", "--summary")
    docs = next(one for one in found["folders"] if one["path"] == "/p0/docs")
    assert [docs[what] for what in ("appeared", "vanished", "changed", "attributes", "renamed")] == [1, 1, 2, 1, 2]


def test_the_text_of_one_file(program: Program) -> None:
    first, second = moments(program)
    shown = program.run("diff", f"web1/vda@{first}", f"web1/vda@{second}:/p0/docs/plan.txt").out
    assert "-two\n+2\\x1b[31m\n" in shown, "what steers a terminal is shown as its code"
    binary = program.run("diff", f"web1/vda@{first}", f"web1/vda@{second}:/p0/docs/binary").out
    assert "no text; the first byte that differs is 0): 5,000 bytes" in binary
    gone = program.ok("diff", f"web1/vda@{first}", f"web1/vda@{second}:/p0/docs/gone")
    assert (gone["after"], gone["lines"][-1]) == (None, "-gone")
    assert program.run("diff", f"web1/vda@{first}", f"web1/vda@{second}:/p0/docs/nowhere").code == 6


def test_bytes_of_disks(program: Program) -> None:
    first, second = moments(program)
    found = program.ok("diff", f"web1@{first}", f"web1@{second}", "--blocks")["disks"]["vda"]
    contents = []
    for point in (first, second):
        program.restore(f"web1/vda@{point}", program.folder / f"{point}.raw")
        contents.append((program.folder / f"{point}.raw").read_bytes())
    blocks = [at for at in range(0, 24 * MIB, 65536) if contents[0][at : at + 65536] != contents[1][at : at + 65536]]
    told = [at for one in found["extents"] for at in range(one["start"], one["start"] + one["length"], 65536)]
    assert told == blocks
