# SPDX-License-Identifier: AGPL-3.0-or-later
"""kill -9 of a rollback before each of its durable steps: the same command goes on, `--undo` goes back, nothing is a mixture
that nobody knows of, and what was left is there as a branch.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from everywhen.block.target_mark import MARK_SUFFIX
from everywhen.interfaces.cli import main
from everywhen.repository.points import RecoveryPoints
from everywhen.services.rollback import rollback
from everywhen.services.rollback.image_writer import ImageWriter, QemuTools
from tests.hypervisor import eventually
from tests.long_forms import SOAK, in_soak
from tests.program import Program, await_

MIB = 1 << 20
THEN, NOW = b"then" * 4, b"now!" * 4
PLACES = (100_000, 700_000)
"""Where a disk was written to since: in blocks that are not neighbours."""
_FORK = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Scene:
    """A VM with a raw disk, and one that was larger then, in qcow2; where, and what the disks held."""

    folder: Path
    then: tuple[bytes, bytes]
    now: tuple[bytes, bytes]
    when: str

    @property
    def arguments(self) -> list[str]:
        return ["rollback", f"web1@{self.when}", "--disk", f"vda={self.folder / 'a'}", "--disk", f"vdb={self.folder / 'b'}"]

    @property
    def program(self) -> Program:
        return Program(self.folder)

    def disks(self) -> tuple[bytes, bytes]:
        raw = self.folder / "content"
        command = ["qemu-img", "convert", "-O", "raw", str(self.folder / "b"), str(raw)]
        # What a killed run wrote with may hold it for a moment more.
        eventually(lambda: not subprocess.run(command, capture_output=True, check=False).returncode, "nobody writes to it")
        return (self.folder / "a").read_bytes(), raw.read_bytes()

    def marked(self) -> bool:
        return any(self.folder.glob(f"*{MARK_SUFFIX}"))

    def copied(self, folder: Path) -> Scene:
        shutil.copytree(self.folder, folder)
        return Scene(folder, self.then, self.now, self.when)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    program = Program(folder).init()
    a, b = folder / "a", folder / "b"
    content = os.urandom(MIB)
    a.write_bytes(content)
    b_then = content[::-1] + os.urandom(MIB // 2)
    (folder / "raw").write_bytes(b_then)
    _qemu_img("convert", "-O", "qcow2", folder / "raw", b)
    images = (f"vda={a}", f"vdb={b}")
    when = program.backup("web1", *images)["point"]
    changed = bytearray(content)
    for place in PLACES:
        changed[place : place + len(NOW)] = NOW
    a.write_bytes(changed)
    b.unlink()
    (folder / "raw").write_bytes(changed)
    _qemu_img("convert", "-O", "qcow2", folder / "raw", b)
    return Scene(folder, (content, b_then), (bytes(changed), bytes(changed)), when)


def _qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


STEPS: list[tuple[object, str]] = [
    (rollback, "write_record"),
    (rollback, "begin"),
    (rollback, "replaced"),
    (rollback, "remove_record"),
    (ImageWriter, "write"),
    (ImageWriter, "flush"),
    (QemuTools, "resize"),
    (RecoveryPoints, "commit"),
]
"""Whatever a rollback makes durable, and each piece that it writes."""


def _run(arguments: list[str], environment: dict[str, str], at: int, counted: str) -> None:
    """In a child: the program, killed before (or, odd, right after) the step of that number; their count into a file."""
    os.environ.clear()
    os.environ.update(environment)
    count = 0

    def deadly(work: Callable[..., object]) -> Callable[..., object]:
        def step(*given: object, **named: object) -> object:
            nonlocal count
            if 2 * count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            done = work(*given, **named)
            if 2 * count + 1 == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            Path(counted).write_text(str(count))
            return done

        return step

    for holder, name in STEPS:
        setattr(holder, name, deadly(getattr(holder, name)))
    said = os.open(f"{counted}-said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    main.main(arguments)


def killed(scene: Scene, at: int, *more: str) -> int | None:
    """The exit code of a rollback that was to be killed there."""
    environment = scene.program.environment
    child = _FORK.Process(target=_run, args=([*scene.arguments, *more], environment, at, str(scene.folder / "count")))
    child.start()
    child.join(60)
    return child.exitcode


@cache
def _steps(scene: Scene) -> int:
    whole = scene.copied(scene.folder.parent / "counted")
    assert killed(whole, -1) == 0
    return int((whole.folder / "count").read_text())


def rolled_back(scene: Scene) -> list[dict[str, object]]:
    return [point for point in scene.program.ok("points") if point["rolled_back"]]


def check_whole(scene: Scene) -> None:
    """Set back, once, with what was left as a branch, and nothing under way."""
    assert scene.disks() == scene.then
    assert not scene.marked()
    assert not (scene.folder / "host/web1/rollback.json").exists()
    (back,) = rolled_back(scene)
    assert back["rolled_back"]["branch"] == "web1~1"  # type: ignore[index]
    for moment, disks in (("web1~1", scene.now), ("web1@latest", scene.then)):
        into = scene.folder / moment
        into.mkdir()
        scene.program.restore(moment, into)
        assert tuple((into / f"web1-{disk}.raw").read_bytes() for disk in ("vda", "vdb")) == disks


def ways(scene: Scene, some: list[int]) -> list[int]:
    """Where it is killed: everywhere, or at some of these places."""
    return list(range(2 * _steps(scene) - 1)) if SOAK else some  # after the last one it is over


@pytest.mark.timeout(3600 if SOAK else 120)
def test_the_same_command_goes_on_wherever_it_was_killed(scene: Scene, tmp_path: Path) -> None:
    assert _steps(scene) >= 15
    last = 2 * _steps(scene) - 2
    for at in ways(scene, [13, last - 13]):
        one = scene.copied(tmp_path / str(at))
        assert killed(one, at) == -signal.SIGKILL, at
        if one.disks() not in (one.then, one.now):
            assert one.marked(), f"{at}: a mixture that nobody knows of"
            assert one.program.run("backup", "web1", f"vda={one.folder / 'a'}", f"vdb={one.folder / 'b'}").code == 4
        assert killed(one, -1) == 0, at
        check_whole(one)
        shutil.rmtree(one.folder)


@pytest.mark.timeout(3600 if SOAK else 120)
def test_undo_goes_back_from_wherever_it_was_killed(scene: Scene, tmp_path: Path) -> None:
    for at in ways(scene, [20]):
        one = scene.copied(tmp_path / str(at))
        assert killed(one, at) == -signal.SIGKILL, at
        over = not (one.folder / "host/web1/rollback.json").exists() and rolled_back(one)
        done = killed(one, -1, "--undo")
        if done == 4:  # the point was made: what is left is to say that it is over
            assert killed(one, -1) == 0
            done = killed(one, -1, "--undo")
        elif done == 6:  # nothing was begun yet
            assert not rolled_back(one)
            done = 0
        assert done == 0, (at, over, (one.folder / "count-said").read_text())
        assert one.disks() == one.now, at
        assert not one.marked()
        assert not (one.folder / "host/web1/rollback.json").exists()
        shutil.rmtree(one.folder)


@pytest.mark.timeout(3600 if SOAK else 120)
def test_an_undo_that_is_killed_goes_on(scene: Scene, tmp_path: Path) -> None:
    for at in range(1, 12) if SOAK else (4,):
        one = scene.copied(tmp_path / str(at))
        assert killed(one, 2 * 7) == -signal.SIGKILL, "while it writes"
        assert one.marked()
        assert killed(one, at, "--undo") == -signal.SIGKILL
        assert killed(one, -1) == 4, "not forward again, which would not know what the disks hold"
        assert killed(one, -1, "--undo") == 0
        assert one.disks() == one.now
        assert rolled_back(one) == []
        shutil.rmtree(one.folder)


@in_soak
def test_a_vm_that_was_started_on_a_mixture_is_not_written_over(scene: Scene, tmp_path: Path) -> None:
    one = scene.copied(tmp_path / "one")
    assert killed(one, 2 * 7) == -signal.SIGKILL, "while it writes"
    socket = one.folder / "s"
    command = ["qemu-nbd", "-f", "raw", "-k", str(socket), "--persistent", str(one.folder / "a")]
    with subprocess.Popen(command, text=True) as server:
        try:
            await_(server, socket.exists)
            found = one.program.run(*one.arguments, "--json")
            assert (found.code, "was started since" in found.error["what"]) == (1, True)
        finally:
            server.terminate()


def test_what_was_restored_meanwhile_is_not_written_over(scene: Scene, tmp_path: Path) -> None:
    one = scene.copied(tmp_path / "one")
    assert killed(one, 2 * 7) == -signal.SIGKILL, "while it writes"
    one.program.restore(f"web1/vda@{one.when}", one.folder / "a", "--in-place")
    found = one.program.run(*one.arguments, "--json")
    assert (found.code, "was written by something else" in found.error["what"]) == (1, True)
    assert (one.folder / "a").read_bytes() == one.then[0]
