# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hundreds of moments in one mounted folder, and several who read in all of them: what is open stays little."""

from __future__ import annotations

import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.guest_images import content_of, empty, run
from tests.long_forms import in_soak
from tests.mounts import Mount, can_mount
from tests.program import Program

pytestmark = [can_mount, in_soak]

MOMENTS = 200
READERS = 6
MOST_RESIDENT = 600 << 20
"""Bytes of the process that serves. Its cache of blocks alone may take 256 MiB."""
MOST_PARSERS = 20
"""16, and those that somebody asks just then."""


def resident(process: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_many_moments_are_read_by_several(program: Program, tmp_path: Path) -> None:
    root, image = tmp_path / "root", tmp_path / "vda.img"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "os-release").touch()
    (root / "large").write_bytes(content_of(1, 3 << 20))
    (root / "number").write_bytes(b"%8d" % 0 + bytes(4088))
    run("mkfs.ext4", "-q", "-d", root, "-b", "4096", empty(image, 16 << 20))
    place = image.read_bytes().index(b"%8d" % 0 + bytes(4088))
    for number in range(MOMENTS):
        with image.open("r+b") as disk:
            disk.seek(place)
            disk.write(b"%8d" % number)
        program.later_s = number * 2
        program.backup("web1", f"vda={image}")
    (tmp_path / "all").mkdir()
    mount = Mount(program, tmp_path / "all")
    try:
        moments = mount.moments()
        assert len(moments) == MOMENTS
        seen: list[tuple[int, int]] = []

        def read(reader: int) -> None:
            chance = random.Random(reader)
            for _ in range(30):
                number = chance.randrange(MOMENTS)
                files = moments[number] / "files"
                assert int((files / "number").read_bytes()[:8]) == number
                assert (files / "large").read_bytes() == content_of(1, 3 << 20)
                seen.append((resident(mount.process.pid), len(children(mount.process.pid))))

        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(read, range(READERS)))
        # Somebody who keeps a file open in each of many moments.
        held = [(moment / "files" / "number").open("rb") for moment in moments[:60]]
        for number, file in enumerate(held):
            assert int(file.read(8)) == number
            seen.append((resident(mount.process.pid), len(children(mount.process.pid))))
        for file in held:
            file.close()
        assert max(memory for memory, _ in seen) < MOST_RESIDENT
        assert max(count for _, count in seen) <= MOST_PARSERS
        assert mount.end(signal.SIGTERM).code == 0
        assert not list((program.repo / "leases").glob("*"))
    finally:
        mount.take_away()
