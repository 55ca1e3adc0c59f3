# SPDX-License-Identifier: AGPL-3.0-or-later
"""Killed, interrupted, two at once, no room left: what is in the repository stays whole, and the next run goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.long_forms import in_soak
from tests.program import WITHOUT_PRIVILEGE, Done, Program, ended, freeze, same

HOUR = 3600


def noise(path: Path, megabytes: int, seed: int) -> Path:
    """An image that does not compress."""
    path.write_bytes(random.Random(seed).randbytes(megabytes << 20))
    return path


def test_a_killed_backup_is_gone_on_with(program: Program, tmp_path: Path) -> None:
    image = noise(tmp_path / "a.img", 160, 1)
    process = program.start("backup", "web1", f"vda={image}")
    freeze(process, lambda: len(list(program.repo.glob("packs/*/[0-9a-f]*"))) >= 2)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    kept = {path.name for path in program.repo.glob("packs/*/*") if not path.name.startswith(".tmp")}
    assert program.ok("points") == []
    found = program.backup("web1", f"vda={image}")
    # What was stored by the first run was not stored again; the rest of it was.
    assert found["bytes_stored"] < (160 - 40) << 20
    assert found["bytes_changed"] == 160 << 20
    assert kept < {path.name for path in program.repo.glob("packs/*/*")}
    assert program.packs() < (160 << 20) * 1.01
    program.restore("web1/vda", tmp_path / "back.img")
    same(image, tmp_path / "back.img")
    # The dead writer's session is cleared away by gc; its packs are in use.
    freed = program.ok("gc")
    assert (freed["packs_deleted"], freed["waiting_for"]) == (0, [])
    assert not list(program.repo.glob("sessions/*"))


def test_an_interrupted_backup_says_what_is_kept(program: Program, tmp_path: Path) -> None:
    image = noise(tmp_path / "a.img", 96, 2)
    process = program.start("backup", "web1", f"vda={image}", "--json")
    freeze(process, lambda: list(program.repo.glob("packs/*/[0-9a-f]*")))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    done = ended(process)
    assert done.code == 130, done
    assert done.error["code"] == "interrupted"
    assert "the same command goes on from there" in done.error["safe"]
    assert "Traceback" not in done.err
    assert program.ok("points") == []
    assert not list(program.repo.rglob(".tmp-*"))
    again = program.backup("web1", f"vda={image}")
    assert again["bytes_stored"] < (96 - 30) << 20
    program.restore("web1/vda", tmp_path / "back.img")
    same(image, tmp_path / "back.img")


@in_soak
def test_a_backup_interrupted_twice_ends_at_once_and_harms_nothing(program: Program, tmp_path: Path) -> None:
    image = noise(tmp_path / "a.img", 96, 4)
    # Slow compression: an ending in good order waits for it, a quarter of a second, and the second Ctrl-C is faster.
    process = program.start("backup", "web1", f"vda={image}", "--compression", "19")
    freeze(process, lambda: list(program.repo.glob("packs/*/[0-9a-f]*")))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    assert process.stderr is not None
    before = iter(process.stderr.readline, "")
    assert "Stopping. Ctrl-C again: at once.\n" in before
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert (done.code, done.out) == (130, "")
    assert not any(word in done.err for word in ("Interrupted", "Stopping", "Traceback", "Error")), done.err
    # Nothing was tidied up, and nothing needs to be.
    assert list(program.repo.glob("sessions/*"))
    assert program.ok("points") == []
    assert program.run("verify", "--read-data").code == 0
    again = program.backup("web1", f"vda={image}")
    assert again["bytes_stored"] < (96 - 30) << 20
    assert program.run("verify", "--read-data").code == 0
    program.restore("web1/vda", tmp_path / "back.img")
    same(image, tmp_path / "back.img")


@pytest.mark.parametrize("caches", ["shared", pytest.param("own", marks=in_soak)])
def test_several_backups_at_once(caches: str, program: Program, tmp_path: Path) -> None:
    shared = noise(tmp_path / "shared.img", 12, 3)
    images = {name: noise(tmp_path / f"{name}.img", 6, number) for number, name in enumerate(("web1", "web2"))}
    running = []
    for number, (vm, image) in enumerate([*images.items(), ("web1", images["web1"])]):
        if caches == "own":
            program.environment["EVERYWHEN_CACHE"] = str(tmp_path / f"cache-{number}")
        running.append(program.start("backup", vm, f"vda={image}", f"vdb={shared}", "--json"))
    points = [ended(process).document for process in running]
    listed = {point["id"]: point for point in program.ok("points")}
    assert listed.keys() == {point["point"] for point in points}
    assert len(list(program.repo.glob("vms/*"))) == 2
    for number, point in enumerate(points):
        folder = tmp_path / f"out-{number}"
        folder.mkdir()
        found = program.restore(f"{point['vm']}@{point['point']}", folder)
        same(images[point["vm"]], Path(found["disks"]["vda"]["path"]))
        same(shared, Path(found["disks"]["vdb"]["path"]))
    assert program.ok("verify", "--read-data") is not None


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own; skips where mounting is not allowed."""
    backing, mountpoint = folder / "small.ext4", folder / "small"
    mountpoint.mkdir()
    backing.touch()
    os.truncate(backing, megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(backing)], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", str(backing), str(mountpoint)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Take all room but `leave` bytes, to the last block."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with (disk / "filler").open("ab") as file:
        spare = leave or 4 << 20  # what the file system needs itself to say where the filler is
        if free > spare:
            os.posix_fallocate(file.fileno(), file.tell(), free - spare)
    if leave == 0:
        with (disk / "last").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path, 600) as disk:
        program = Program(tmp_path, "small/repo")
        program.ok("init", program.repo, "--encryption", "none")
        assert next(program.repo.glob("reserve/room")).stat().st_size >= 256 << 20
        old, new = noise(tmp_path / "old.img", 24, 4), noise(tmp_path / "new.img", 24, 5)
        program.ok("policy", "set", "--default", "last 1")
        program.backup("web1", f"vda={old}")
        kept = program.backup("web1", f"vda={new}")

        # Full in the middle of a backup: said, and nothing of it is a recovery point.
        fill(disk, leave=60 << 20)
        big = noise(tmp_path / "big.img", 128, 6)
        done = program.run("backup", "web1", f"vda={big}", "--json")
        assert done.code == 8, done
        assert "What was stored before is unharmed" in done.error["safe"]
        assert "gc" in str(done.error["do"])
        assert len(program.ok("points")) == 2
        assert not list(program.repo.rglob(".tmp-*"))

        # Not a byte left: nothing new is begun, everything old can be read.
        fill(disk, leave=0)
        done = program.run("backup", "web1", f"vda={new}", "--json")
        assert done.code == 8, done
        assert "prune" in str(done.error["do"])
        assert len(program.ok("points")) == 2
        done = program.run("restore", "web1/vda", "--to", "back.img")
        assert done.code == 0, done
        same(new, tmp_path / "back.img")

        # Cleaning works, because of the reserve: first what the failed backup left, later what is dropped.
        done = program.run("prune", "--json", "--yes-more-than-a-third")
        assert done.code == 0, done
        freed = program.run("gc", "--json")
        assert freed.code == 0, freed
        # It took of the reserve. A backup must not, however much room there seems to be now.
        done = program.run("backup", "web1", f"vda={new}", "--json")
        assert done.code == 8, done
        program.later_s = 100 * HOUR
        freed = program.run("gc", "--json", "--yes-the-clock-is-right")
        assert freed.code == 0, freed
        assert freed.document["points_deleted"] == 1
        assert freed.document["bytes_freed"] >= 24 << 20
        assert [point["id"] for point in program.ok("points")] == [kept["point"]]
        program.restore("web1/vda", tmp_path / "back.img", "--overwrite")
        same(new, tmp_path / "back.img")
        (disk / "filler").unlink()
        program.ok("gc")
        assert next(program.repo.glob("reserve/room")).stat().st_size >= 256 << 20
        program.backup("web1", f"vda={new}")


def test_a_target_without_room(program: Program, tmp_path: Path) -> None:
    program.backup("web1", f"vda={noise(tmp_path / 'a.img', 24, 7)}")
    with small_disk(tmp_path, 16) as disk:
        done = program.run("restore", "web1/vda", "--to", disk / "back.img", "--json")
        assert done.code == 8, done
        assert str(disk / "back.img") in done.error["what"]
        assert [path.name for path in disk.iterdir()] == ["lost+found"]


def test_a_clock_that_runs_ahead_deletes_nothing(program: Program, tmp_path: Path) -> None:
    """I-11: by it the time to take moments back would be over."""
    program.ok("policy", "set", "--default", "last 1")
    for seed in (1, 2):
        program.backup("web1", f"vda={noise(tmp_path / 'a.img', 1, seed)}")
    (dropped,) = program.ok("prune", "--yes-more-than-a-third")["dropped"]
    program.later_s = 30 * 24 * HOUR
    done = program.run("gc", "--json")
    assert done.code == 2, done
    assert "Is the clock right?" in done.error["what"]
    assert "everywhen gc --yes-the-clock-is-right" in str(done.error["do"])
    assert "Is the clock right?" in program.run("gc", "--dry-run").err
    program.later_s = 0
    assert program.ok("prune", "--undo")["taken_back"] == [dropped]
    program.ok("prune", "--yes-more-than-a-third")
    program.later_s = 30 * 24 * HOUR
    assert program.ok("gc", "--yes-the-clock-is-right")["points_deleted"] == 1


def test_a_full_disk_with_the_caches(tmp_path: Path) -> None:
    """One disk for repository and caches, and a newest moment that these caches do not know."""
    with small_disk(tmp_path, 600) as disk:
        program = Program(tmp_path, "small/repo", {"EVERYWHEN_CACHE": str(disk / "cache")})
        program.ok("init", program.repo, "--encryption", "none")
        old, new = noise(tmp_path / "old.img", 24, 4), noise(tmp_path / "new.img", 24, 5)
        program.ok("policy", "set", "--default", "last 1")
        first = program.backup("web1", f"vda={old}")
        elsewhere = Program(tmp_path, "small/repo")
        elsewhere.backup("web1", f"vda={new}")
        fill(disk, leave=0)
        assert program.ok("status")["vms"]
        program.restore("web1/vda", tmp_path / "back.img")
        same(new, tmp_path / "back.img")
        without_scratch(program.run("verify", "--json"), disk / "cache")
        assert program.ok("prune", "--yes-more-than-a-third")["dropped"] == [first["point"]]
        program.ok("gc")  # in the reserve's room
        program.ok("verify")


def without_scratch(done: Done, cache: Path) -> None:
    """It cannot be done without room for files that do not stay; whose disk is full, and the way out, is said."""
    assert done.code == 8, done
    assert done.error["what"].startswith(f"{cache}/"), done
    assert "EVERYWHEN_CACHE" in str(done.error["do"])


def test_a_full_disk_of_the_caches_only(program: Program, tmp_path: Path) -> None:
    old, new = noise(tmp_path / "old.img", 24, 4), noise(tmp_path / "new.img", 24, 5)
    with small_disk(tmp_path, 16) as disk:
        elsewhere = dict(program.environment)
        program.environment["EVERYWHEN_CACHE"] = str(disk / "cache")
        program.backup("web1", f"vda={old}")
        fill(disk, leave=0)
        made = program.backup("web1", f"vda={new}")
        assert program.ok("points")[0]["id"] == made["point"]
        program.restore("web1/vda", tmp_path / "back.img")
        same(new, tmp_path / "back.img")
        without_scratch(program.run("gc", "--json"), disk / "cache")
        program.environment["EVERYWHEN_CACHE"] = str(disk / "another")
        without_scratch(program.run("points", "--json"), disk / "another")
        program.environment = elsewhere
        program.ok("gc")


@pytest.mark.parametrize("whose", ["folder", "files"])
def test_caches_of_another_user(whose: str, program: Program, tmp_path: Path) -> None:
    """As after `sudo everywhen`, and then without."""
    program.backup("web1", f"vda={noise(tmp_path / 'a.img', 1, 4)}")
    cache = tmp_path / "cache"
    for path in [cache] if whose == "folder" else [path for path in cache.rglob("*") if path.is_file()]:
        path.chmod(0)
    done = program.run("points", "--json", prefix=WITHOUT_PRIVILEGE)
    cache.chmod(0o700)
    assert done.code == 7, done
    assert done.error["what"].startswith(f"{cache}/"), done
    assert "EVERYWHEN_CACHE" in str(done.error["do"])
