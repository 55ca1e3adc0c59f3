# SPDX-License-Identifier: AGPL-3.0-or-later
"""The benchmark program itself, on tiny data: its table is complete, and a wrong result never becomes a figure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.long_forms import SOAK, in_soak

ROOT = Path(__file__).resolve().parents[2]

KEYS = {
    "P1": {"P1 borg", "P1 restic", "P1 qemu-img", "P1 memory"},
    "P2": {"P2 time", "P2 stored"},
    "P2b": {"P2b borg"},
    "P2c": {"P2c time", "P2c stored"},
    "P3": {"P3 borg", "P3 restic", "P3 qemu-img"},
    "P4b": {"P4b history"},
    "P5": {"P5 4k 1", "P5 4k 16", "P5 4k seq", "P5 1M seq", "P5 host", "P5 sealing", "P5 lag"},
    "P5b": {"P5b host", "P5b sealing", "P5b lag"},
    "P5c": {"P5c cold", "P5c hot"},
    "P5d": {"P5d virtnbdbackup"},
    "P6": {"P6 done"},
    "P7": {"P7 saved"},
    "P7b": {"P7b saved ext4", "P7b saved XFS", "P7b saved NTFS"},
    "P8": {"P8 ratio", "P3 history"},
    "P9": {"P9 share"},
}
"""What the design asks for (section 7), by the table's keys."""

TOOLS = ("borg", "restic", "qemu-storage-daemon", "fio", "nbdkit", "virtnbdbackup", "libvirtd", "unshare")


def _bench(work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "--quick", "--work", str(work), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _targets(document: str) -> dict[str, tuple[str, str]]:
    """(measured, reached) by key."""
    table = document.partition("## Targets")[2].partition("##")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| P")]
    return {row[0]: (row[3], row[4]) for row in rows}


def _excused(reason: str) -> bool:
    """Whether something that is missing here is why nothing was measured."""
    absent = [name for name in (*TOOLS, "qemu-img convert") if shutil.which(name.split()[0]) is None]
    allowed = [f"{name} is not installed" for name in (*absent, "libvirt's Python library")] + ["not part of a quick run"]
    return reason in allowed or "cannot be mounted here" in reason or reason.startswith("capture was lost")


@in_soak
def test_the_table_is_complete(tmp_path: Path) -> None:
    measures = list(KEYS) if SOAK else ["P1", "P2c"]  # all take about three minutes
    done = _bench(tmp_path, "--only", ",".join(measures))
    assert done.returncode == 0, done.stderr
    found = _targets(done.stdout)
    assert found.keys() == set().union(*(KEYS[measure] for measure in measures))
    for key, (measured, reached) in found.items():
        if measured == "not measured":
            assert _excused(reached), (key, reached)
        else:
            assert reached in ("yes", "**no**"), key
    assert "the figures mean nothing" in done.stdout
    assert list(tmp_path.iterdir()) == [], "the work folder is removed"


@in_soak
def test_a_wrong_restore_is_not_measured(tmp_path: Path) -> None:
    program = tmp_path / "everywhen"
    real = Path(sys.executable).with_name("everywhen")
    program.write_text(
        f"#!{sys.executable}\n"
        "import subprocess, sys\n"
        f"code = subprocess.run([{str(real)!r}, *sys.argv[1:]]).returncode\n"
        "if 'restore' in sys.argv:\n"
        "    with open(sys.argv[sys.argv.index('--to') + 1], 'r+b') as file:\n"
        "        file.seek(70000)\n"
        "        byte = file.read(1)\n"
        "        file.seek(70000)\n"
        "        file.write(bytes([byte[0] ^ 1]))\n"
        "sys.exit(code)\n"
    )
    program.chmod(0o755)
    (tmp_path / "work").mkdir()
    done = _bench(tmp_path / "work", "--only", "P3", "--everywhen", str(program))
    assert done.returncode == 1, done.stderr
    assert "FAILED: P3: everywhen" in done.stderr
    assert "differs from what was backed up" in done.stderr
    assert {measured for measured, _ in _targets(done.stdout).values()} == {"not measured"}
    assert "## P3" not in done.stdout


CONTENT = """
import sys
from pathlib import Path
from bench.proof import content_of
folder = Path(sys.argv[1])
def made(name, size, pieces):
    with (folder / name).open("wb") as file:
        file.truncate(size)
        for at, piece in pieces:
            file.seek(at); file.write(piece)
    return content_of(folder / name)
same = made("a", 300_000, [(70_000, b"x")])
assert made("written zeroes", 300_000, [(70_000, b"x"), (131_072, bytes(65_536)), (299_990, bytes(10))]) == same
different = [made("b", 300_000, [(70_001, b"x")]), made("c", 300_000, [(70_000, b"y")]), made("d", 300_000, [])]
different += [made("e", 300_001, [(70_000, b"x")]), made("f", 300_000, [(70_000, b"x"), (299_999, b"x")])]
different += [made("g", 300_000, [(4_464, b"x")])]
assert same not in different and len(set(different)) == len(different)
"""


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="holes in files cannot be asked for on this system")
def test_the_proof_sees_every_difference_and_no_hole(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", CONTENT, str(tmp_path)], cwd=ROOT, check=True)
