# SPDX-License-Identifier: AGPL-3.0-or-later
"""What backup promises (design 4.2, 4.3, 4.9, I-5): each point is whole, costs what changed, and says how good it is."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.program import BLOCK, Program, ended, freeze, qemu_img, same

NOISE = random.Random(2).randbytes(16 * BLOCK)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(NOISE)
    os.truncate(path, 1024 * BLOCK)
    return path


def put(path: Path, offset: int, content: bytes) -> None:
    """Write into an image."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def changes(path: Path, *extents: tuple[int, int]) -> str:
    """A list of changed extents in a file, as an argument for vda."""
    path.write_text(json.dumps([{"start": start, "length": length} for start, length in extents]))
    return f"vda={path}"


@contextmanager
def held_by_qemu(path: Path, image_format: str) -> Iterator[None]:
    """A QEMU storage daemon that has the image open for writing, as a running VM has."""
    pid_file, socket = path.parent / "pid", path.parent / "nbd.sock"
    driver = f"driver={image_format},node-name=n,file.driver=file,file.filename={path}"
    export = "type=nbd,id=e,node-name=n,writable=on"
    command = ["qemu-storage-daemon", "--daemonize", "--pidfile", str(pid_file), "--blockdev", driver]
    command += ["--nbd-server", f"addr.type=unix,addr.path={socket}", "--export", export]
    subprocess.run(command, check=True)
    process = int(pid_file.read_text())
    watch = os.pidfd_open(process)
    try:
        yield
    finally:
        os.kill(process, signal.SIGTERM)
        select.select([watch], [], [], 30)
        os.close(watch)


def test_images_in_use_are_refused_or_marked(program: Program, image: Path, tmp_path: Path) -> None:
    qcow = tmp_path / "a.qcow2"
    qemu_img("convert", "-O", "qcow2", image, qcow)
    overlay = tmp_path / "b.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", qcow, "-F", "qcow2", overlay)
    with held_by_qemu(overlay, "qcow2"):
        refused = program.run("backup", "web1", f"vda={overlay}", "--json")
        assert (refused.code, refused.error["on"]) == (4, str(overlay))
        assert "--live" in str(refused.error["do"])
        # The parent of an image in use does not change.
        assert program.backup("base", f"vda={qcow}")["consistency"] == "crash"
        read = program.run("backup", "web1", f"vda={overlay}", "--live")
        assert read.code == 0
        assert "consistency is `none`" in read.err
        assert program.ok("points", "web1")[0]["consistency"] == "none"
        assert program.run("restore", "web1/vda", "--to", overlay, "--overwrite", "--format", "qcow2").code == 4
    assert program.backup("web1", f"vda={overlay}")["consistency"] == "crash"
    program.restore("web1/vda", tmp_path / "back.img")
    same(image, tmp_path / "back.img")


def test_image_that_changes_while_it_is_read(program: Program, tmp_path: Path) -> None:
    image = tmp_path / "busy.img"
    image.write_bytes(random.Random(3).randbytes(64 << 20))
    process = program.start("backup", "web1", f"vda={image}", "--json")
    freeze(process, lambda: list(program.repo.glob("sessions/*")))
    put(image, 5 * BLOCK, b"changed")
    process.send_signal(signal.SIGCONT)
    done = ended(process)
    assert done.code == 5, done
    assert (done.document["consistency"], done.document["why"]) == ("none", "changed while it was read")
    assert "warning" in done.err
    assert program.ok("points")[0]["consistency"] == "none"


def test_sizes_and_disks_come_and_go(program: Program, image: Path, tmp_path: Path) -> None:
    states: list[dict[str, bytes]] = []
    rng = random.Random(4)
    data, other = tmp_path / "data.img", tmp_path / "other.img"
    for size, disks in (
        (3 * BLOCK + 700, "vda"),
        (2 * BLOCK - 5, "vda vdb"),
        (2 * BLOCK + 1, "vdb"),
        (9 * BLOCK + 513, "vda vdb"),
    ):
        content = data.read_bytes()[:size] if data.exists() else rng.randbytes(size)
        data.write_bytes(content + bytes(max(0, size - len(content))))
        other.write_bytes(rng.randbytes(700))
        places = {"vda": data, "vdb": other}
        wanted = {name: places[name] for name in disks.split()}
        program.backup("web1", *(f"{name}={path}" for name, path in wanted.items()))
        states.append({name: path.read_bytes() for name, path in wanted.items()})
    points = [point["id"] for point in reversed(program.ok("points"))]
    assert len(points) == len(states)
    for point, state in zip(points, states, strict=True):
        folder = tmp_path / point
        folder.mkdir()
        found = program.restore(f"web1@{point}", folder)
        assert {name: Path(disk["path"]).read_bytes() for name, disk in found["disks"].items()} == state
    missing = program.run("restore", f"web1/vda@{points[2]}", "--to", "x", "--json")
    assert (missing.code, "vdb" in missing.error["what"]) == (6, True)
    # Grown and shrunk with known changes: what a resize makes new is looked at without being listed.
    content = data.read_bytes()
    for size in (11 * BLOCK + 3, 10 * BLOCK - 9):
        content = content[:size] + rng.randbytes(max(0, size - len(content)))
        data.write_bytes(content)
        newest = program.ok("points", "--limit", "1")[0]["id"]
        listed = changes(tmp_path / "changes.json")
        program.backup("web1", f"vda={data}", "--changed-blocks", listed, "--since", newest)
        program.restore("web1/vda", tmp_path / "resized.img", "--overwrite")
        assert (tmp_path / "resized.img").read_bytes() == content


def test_the_format_of_an_image_does_not_matter(program: Program, image: Path, tmp_path: Path) -> None:
    first = program.backup("web1", f"vda={image}")
    assert first["bytes_stored"] > len(NOISE)
    for image_format in ("qcow2", "vhdx", "vmdk"):
        other = tmp_path / f"other.{image_format}"
        qemu_img("convert", "-O", image_format, image, other)
        before = program.packs()
        again = program.backup("web1", f"vda={other}")
        assert (again["bytes_changed"], again["bytes_stored"]) == (0, 0)
        assert again["disks"]["vda"]["format"] == image_format
        assert program.packs() == before


def test_changed_blocks(program: Program, image: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    since = program.backup("web1", f"vda={image}")["point"]
    put(image, 3 * BLOCK + 100, rng.randbytes(5000))
    put(image, 900 * BLOCK, rng.randbytes(10))
    right = changes(tmp_path / "right.json", (3 * BLOCK, 6000), (900 * BLOCK, 512), (1023 * BLOCK, BLOCK))
    found = program.backup("web1", f"vda={image}", "--changed-blocks", right, "--since", since)
    assert found["misses"] == {}
    assert found["bytes_changed"] == 2 * BLOCK
    assert found["bytes_stored"] < 12_000
    assert found["bytes_read"] <= 3 * BLOCK
    program.restore("web1/vda", tmp_path / "one.img")
    same(image, tmp_path / "one.img")

    # What `nbdinfo --map --json` prints for a dirty bitmap; type 0 is clean.
    put(image, 7 * BLOCK, rng.randbytes(BLOCK))
    bitmap = [{"offset": 0, "length": 7 * BLOCK, "type": 0, "description": "clean"}]
    bitmap += [{"offset": 7 * BLOCK, "length": BLOCK, "type": 1, "description": "dirty"}]
    bitmap += [{"offset": 8 * BLOCK, "length": 1016 * BLOCK, "type": 0, "description": "clean"}]
    (tmp_path / "map.json").write_text(json.dumps(bitmap))
    listed = ("--changed-blocks", f"vda={tmp_path}/map.json", "--since", found["point"])
    found = program.backup("web1", f"vda={image}", *listed)
    assert (found["bytes_read"], found["bytes_changed"]) == (BLOCK, BLOCK)

    # Since another point than the newest: refused, nothing done.
    refused = program.run("backup", "web1", f"vda={image}", *listed, "--json")
    assert refused.code == 2
    assert found["point"] in refused.error["what"]
    none = program.run("backup", "web1", f"vda={image}", "--changed-blocks", right, "--json")
    assert (none.code, "--since" in none.error["what"]) == (2, True)
    new = program.run(
        "backup", "web1", f"vdb={image}", "--changed-blocks", right.replace("vda", "vdb"), "--since", since, "--json"
    )
    assert (new.code, "newest point is none" in new.error["what"]) == (2, True)

    # A wrong list is found by samples (of 64 not one among these 250 blocks: once in 10^16), and the point is right.
    put(image, 0, rng.randbytes(250 * BLOCK))
    wrong = changes(tmp_path / "wrong.json", (900 * BLOCK, 512))
    done = program.run("backup", "web1", f"vda={image}", "--changed-blocks", wrong, "--since", found["point"], "--json")
    assert done.code == 3, done
    assert done.document["misses"]["vda"] < 250
    assert "the point is right, the list is not" in done.err
    program.restore("web1/vda", tmp_path / "two.img")
    same(image, tmp_path / "two.img")


def test_lists_that_are_none(program: Program, image: Path, tmp_path: Path) -> None:
    since = program.backup("web1", f"vda={image}")["point"]
    arguments = ("--changed-blocks", f"vda={tmp_path}/list.json", "--since", since, "--json")
    far = '[{"start": 0, "length": 99999999999999}]'
    for text in ("", "{}", '[{"start": -1, "length": 5}]', '[{"start": 0, "length": 1e3}]', "[" * 100_000, far):
        (tmp_path / "list.json").write_text(text)
        done = program.run("backup", "web1", f"vda={image}", *arguments)
        assert done.code == 2, text[:100]
        assert "list.json" in done.error["what"]


def test_zeroes_cost_nothing(program: Program, image: Path, tmp_path: Path) -> None:
    program.backup("web1", f"vda={image}")
    put(image, 2 * BLOCK, bytes(BLOCK))
    written = program.backup("web1", f"vda={image}")
    with image.open("r+b") as file:
        subprocess.run(["fallocate", "-p", "-o", str(4 * BLOCK), "-l", str(BLOCK), str(image)], check=True)
        file.flush()
    punched = program.backup("web1", f"vda={image}")
    for found in (written, punched):
        assert (found["bytes_changed"], found["bytes_stored"]) == (BLOCK, 0)
    program.restore("web1/vda", tmp_path / "back.img")
    same(image, tmp_path / "back.img")


def test_a_terabyte_of_holes(program: Program, tmp_path: Path) -> None:
    image = tmp_path / "large.img"
    image.touch()
    os.truncate(image, 1 << 40)
    empty = program.backup("web1", f"vda={image}")
    assert (empty["bytes_read"], program.packs()) == (0, 0)
    rng = random.Random(6)
    places = [rng.randrange(1 << 24) * BLOCK for _ in range(50)]
    for place in places:
        put(image, place, rng.randbytes(4096))
    full = program.backup("web1", f"vda={image}")
    assert full["bytes_changed"] == 50 * BLOCK
    put(image, places[7] + 4096, rng.randbytes(4096))
    listed = changes(tmp_path / "changes.json", (places[7], 8192))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = program.start("backup", "web1", f"vda={image}", "--changed-blocks", listed, "--since", full["point"], "--json")
    found = ended(process)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.document["bytes_read"] == BLOCK
    assert found.document["bytes_stored"] < 6000
    # With the start of the program, which takes 0.4 s of it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    program.restore("web1/vda", tmp_path / "back.img")
    for place in places:
        with image.open("rb") as ours, (tmp_path / "back.img").open("rb") as theirs:
            assert os.pread(ours.fileno(), BLOCK, place) == os.pread(theirs.fileno(), BLOCK, place)
    assert (tmp_path / "back.img").stat().st_blocks * 512 <= 60 * BLOCK  # the file system's own extents count too


def test_files_of_the_configuration(program: Program, image: Path, tmp_path: Path) -> None:
    names = ["web1.xml", "größe \u202e\x1b[31m.conf", "empty", "nvram.fd"]
    contents = [b"<domain/>", b"x" * 70_000, b"", bytes(BLOCK) + NOISE[:100] + bytes(BLOCK)]
    arguments: list[str | Path] = []
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_bytes(content)
        arguments += ["--config", tmp_path / name]
    program.backup("web1", f"vda={image}", *arguments)
    (tmp_path / "out").mkdir()
    shown = program.run("restore", "web1", "--to", "out")
    assert shown.code == 0, shown
    assert "\x1b" not in shown.out
    assert "\u202e" not in shown.out
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == contents
    assert program.ok("points")[0]["files"] == sorted(names)
    again = program.run("restore", "web1", "--to", "out", "--json")
    assert (again.code, "Nothing was written" in again.error["safe"] + again.error["what"]) == (1, True)


def test_a_name_that_is_no_text(program: Program, image: Path, tmp_path: Path) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\n.img")
    os.rename(image, strange)
    assert program.backup("web1", f"vda={strange}")["disks"]["vda"]["size"] == 1024 * BLOCK
    program.backup("web1", f"vda={strange}", "--config", strange)
    (tmp_path / "out").mkdir()
    program.restore("web1", tmp_path / "out")
    assert b"a\xff\n.img" in os.listdir(os.fsencode(tmp_path / "out"))
    absent = program.run("backup", "web1", f"vda={strange}-absent")
    assert absent.code == 6
    assert "a\\xff\\x0a.img-absent" in absent.err


@pytest.mark.parametrize("level", ["-7", "19"])
def test_levels_and_encryption(level: str, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse\n")
    program = Program(tmp_path, more={"EVERYWHEN_PASSPHRASE_FILE": str(tmp_path / "passphrase")})
    key = program.ok("init", program.repo, "--no-reserve")["recovery_key"]
    image = tmp_path / "a.img"
    image.write_bytes(b"".join(b"%06d very secret line\n" % number for number in range(40_000)))
    program.backup("web1", f"vda={image}", "--compression", level)
    assert program.packs() < image.stat().st_size // 3
    for path in (path for path in program.repo.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert b"secret" not in content
        assert b"web1" not in content
    (tmp_path / "key").write_text(key)
    program.restore("web1/vda", tmp_path / "back.img", "--recovery-key-file", str(tmp_path / "key"))
    same(image, tmp_path / "back.img")


def test_progress_for_programs(program: Program, image: Path) -> None:
    done = program.run("backup", "web1", f"vda={image}", "--progress", "json", "--json", "-q")
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.err.splitlines()]
    assert lines[-1]["title"] == "backup web1"
    assert lines[-1]["bytes_done"] == lines[-1]["bytes_total"] == len(NOISE)
    assert done.document["bytes_read"] == len(NOISE)


def test_an_image_that_a_guest_made_look_like_another_format_is_told(program: Program, image: Path, tmp_path: Path) -> None:
    first = program.run("backup", "web1", f"vda={image}")
    assert "was taken for" not in first.err
    qemu_img("create", "-f", "qcow2", tmp_path / "header", "1M")
    put(image, 0, (tmp_path / "header").read_bytes())  # what a guest can write into its disk
    told = program.run("backup", "web1", f"vda={image}")
    assert told.code == 0
    assert "was taken for qcow2 with 1,048,576 bytes" in told.err
    assert f"vda was raw with {1024 * BLOCK:,}" in told.err
    assert "--image-format vda=raw" in told.err
    for _ in range(2):  # who says what it is, is told nothing; nor is anybody once it is as it was before
        quiet = program.run("backup", "web1", f"vda={image}", "--image-format", "vda=raw")
        assert "was taken for" not in quiet.err
    os.truncate(image, 0)
    os.truncate(image, 100 * BLOCK)
    assert "was taken for raw with 6,553,600 bytes" in program.run("backup", "web1", f"vda={image}").err
    os.truncate(image, 60 * BLOCK)
    assert "was taken for" not in program.run("backup", "web1", f"vda={image}").err
