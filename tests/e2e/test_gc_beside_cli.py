# SPDX-License-Identifier: AGPL-3.0-or-later
"""gc beside others at work: backups that want what it deletes, one that stalls and wakes up too late, and a Ctrl-C."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.storage.posix import PosixStore
from tests.laboratory import World
from tests.program import Program, ended, freeze, same


@pytest.fixture
def dropped(program: Program, tmp_path: Path) -> Path:
    """An image that a point had which is to be deleted, and no other."""
    image = noise(tmp_path / "dropped.img", 6, 1)
    program.backup("old", f"vda={image}")
    world = World(tmp_path / "world")
    world.clock.now = time.time_ns() - 3600 * 10**9  # clocks of two hosts may differ: it waits for that
    with world.open(PosixStore(program.repo)) as repository:
        world.drop(repository, *repository.points.list()[0])
    return image


@pytest.fixture
def stalled(program: Program, dropped: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A backup that has stored something, and stands still."""
    image = noise(tmp_path / "stalled.img", 96, 2)
    before = set(program.repo.glob("packs/*/[0-9a-f]*"))
    process = program.start("backup", "web1", f"vda={image}", "--json")
    try:
        freeze(process, lambda: set(program.repo.glob("packs/*/[0-9a-f]*")) - before)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            ended(process)


def noise(path: Path, megabytes: int, seed: int) -> Path:
    """An image that does not compress."""
    path.write_bytes(random.Random(seed).randbytes(megabytes << 20))
    return path


def test_two_backups_and_a_gc_at_once(program: Program, dropped: Path, tmp_path: Path) -> None:
    """One of the backups finds there what the gc is about to delete."""
    images = {"web1": dropped, "web2": noise(tmp_path / "web2.img", 6, 3)}
    commands = [["backup", vm, f"vda={image}"] for vm, image in images.items()]
    running = [program.start(*command, "--json") for command in [*commands, ["gc"]]]
    for process in running:
        done = ended(process)
        assert done.code == 0, done
    assert program.ok("gc")["points_deleted"] + done.document["points_deleted"] == 1
    assert sorted(point["vm"] for point in program.ok("points")) == sorted(images)
    for vm, image in images.items():
        program.restore(f"{vm}/vda", tmp_path / f"{vm}.back")
        same(image, tmp_path / f"{vm}.back")
    assert program.run("verify", "--read-data").code == 0


def test_a_writer_outside_the_container_is_not_taken_for_dead(program: Program, stalled: subprocess.Popen[str]) -> None:
    """The same host name and boot, but the writer's number is nobody's there."""
    container = ("unshare", "--pid", "--fork", "--mount-proc")
    allowed = subprocess.run([*container, "true"], capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"no namespace can be made here: {allowed.stderr.strip()}")
    done = program.run("gc", "--no-wait", "--json", prefix=container)
    assert done.code == 0, done
    assert done.document["waiting_for"] == ["backup web1"]
    stalled.send_signal(signal.SIGCONT)
    done = ended(stalled)
    assert done.code == 0, done


def test_a_stalled_writer_that_wakes_up_after_gc(program: Program, stalled: subprocess.Popen[str], tmp_path: Path) -> None:
    program.later_s = 3600  # nobody stalls for so long and is waited for
    assert program.ok("gc")["points_deleted"] == 1
    program.later_s = 0
    stalled.send_signal(signal.SIGCONT)
    done = ended(stalled)
    assert done.code == 1, done
    assert (done.error["code"], done.error["exit"]) == ("failed", 1)
    assert "this backup was silent for too long and was declared dead; nothing was committed." in done.error["what"]
    assert "Traceback" not in done.err
    assert program.ok("points") == []
    again = program.backup("web1", f"vda={tmp_path / 'stalled.img'}")
    assert again["bytes_stored"] < 1 << 20, "what it had stored is kept"
    assert program.run("verify", "--read-data").code == 0
    program.restore("web1/vda", tmp_path / "back.img")
    same(tmp_path / "stalled.img", tmp_path / "back.img")


def test_ctrl_c_in_gc(program: Program, stalled: subprocess.Popen[str]) -> None:
    """It says that it waits for a writer, is stopped, and the next one goes on."""
    process = program.start("gc", "--progress", "json", "--json")
    assert process.stderr is not None
    said = map(json.loads, iter(process.stderr.readline, ""))
    assert any(line["title"] == "gc" and line["step"].startswith("waiting for backup web1 on ") for line in said)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.code == 130, done
    assert done.error["code"] == "interrupted"
    assert "the next one goes on" in done.error["safe"]
    assert "Traceback" not in done.err
    stalled.send_signal(signal.SIGCONT)
    assert ended(stalled).code == 0
    assert program.ok("gc")["points_deleted"] == 1
    assert program.run("verify", "--read-data").code == 0
