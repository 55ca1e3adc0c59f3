# SPDX-License-Identifier: AGPL-3.0-or-later
"""Real NBD clients on our server: QEMU's tools, libnbd's, and fio."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.memory_devices import BLOCK, MIB, MemoryDevice, MemoryExports, Served, served

SIZE = 24 * MIB + 512  # not whole blocks


def content() -> bytes:
    """Data, a hole of 7 MiB, data, zeroes to the end; the borders of the hole are those of blocks."""
    found = bytearray(SIZE)
    noise = random.Random(1)
    for begin, size in ((0, 5 * MIB), (12 * MIB, 4 * MIB)):
        found[begin : begin + size] = noise.randbytes(size)
    return bytes(found)


CONTENT = content()
MAP = [(0, 5 * MIB, True), (5 * MIB, 7 * MIB, False), (12 * MIB, 4 * MIB, True), (16 * MIB, SIZE - 16 * MIB, False)]
"""Where extents begin, how long they are, whether there is data."""


@pytest.fixture(params=[True, False], ids=["at hand", "waited for"])
def disk(request: pytest.FixtureRequest) -> MemoryDevice:
    return MemoryDevice(CONTENT, at_hand=request.param)


@pytest.fixture
def running(disk: MemoryDevice, tmp_path: Path) -> Iterator[Served]:
    devices = {"vm1/vda@12:00": disk, "scratch": MemoryDevice(bytes(SIZE), at_hand=disk.at_hand)}
    with served(MemoryExports(devices, frozenset({"scratch"})), tmp_path) as server:
        yield server
    assert server.reported == []


def uri(running: Served, name: str = "vm1/vda@12:00") -> str:
    return f"nbd+unix:///{name}?socket={running.path}"


def run(*command: str | Path) -> str:
    """What it prints. It is skipped where it is not installed."""
    program = str(command[0])
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def scratch(exports: MemoryDevice) -> bytes:
    return bytes(exports.content)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.raw"
    path.write_bytes(CONTENT)
    return path


def test_qemu_img_reads(running: Served, plain: Path, tmp_path: Path) -> None:
    told = json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", uri(running)))
    assert told["virtual-size"] == SIZE
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", plain, uri(running))
    copy = tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri(running), copy)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", plain, copy)


def test_qemu_img_sees_what_is_data(running: Served) -> None:
    told = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri(running)))
    assert [(one["start"], one["length"], one["data"]) for one in told] == MAP


def test_qemu_img_writes(running: Served, disk: MemoryDevice, plain: Path) -> None:
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", plain, uri(running, "scratch"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", plain, uri(running, "scratch"))


def test_qemu_io(running: Served) -> None:
    steps = [
        "write -P 0x11 0 128k",
        "write -f -P 0x22 64k 1M",
        "write -z -u 80k 8k",
        "discard 256k 64k",
        "flush",
        "read -P 0x11 0 64k",
        "read -P 0x22 64k 16k",
        "read -P 0 80k 8k",
        "read -P 0x22 88k 168k",
        "read -P 0 256k 64k",
        f"read {SIZE - 512} 512",
    ]
    commands = [word for step in steps for word in ("-c", step)]
    said = run("qemu-io", "-f", "raw", "-d", "unmap", *commands, uri(running, "scratch"))
    assert "verification failed" not in said
    assert "error" not in said
    with pytest.raises(AssertionError, match=r"[Pp]ermission denied|[Rr]ead.only"):
        run("qemu-io", "-f", "raw", "-c", "write 0 512", uri(running))


def test_nbdinfo(running: Served) -> None:
    told = json.loads(run("nbdinfo", "--json", uri(running)))
    export = told["exports"][0]
    assert export["export-name"] == "vm1/vda@12:00"
    assert export["description"] == "what vm1/vda@12:00 is"
    assert export["export-size"] == SIZE
    assert export["is_read_only"]
    assert export["can_multi_conn"]
    assert export["can_df"]
    assert export["contexts"] == ["base:allocation"]
    assert tuple(export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")) == (1, BLOCK, 32 * MIB)
    writable = json.loads(run("nbdinfo", "--json", uri(running, "scratch")))["exports"][0]
    for ability in ("flush", "fua", "trim", "zero", "fast_zero", "multi_conn"):
        assert writable[f"can_{ability}"], ability


def test_nbdinfo_lists_names_and_maps(running: Served) -> None:
    told = json.loads(run("nbdinfo", "--list", "--json", f"nbd+unix://?socket={running.path}"))
    assert [(one["export-name"], one["export-size"]) for one in told["exports"]] == [("vm1/vda@12:00", SIZE), ("scratch", SIZE)]
    told = json.loads(run("nbdinfo", "--map", "--json", uri(running)))
    assert [(one["offset"], one["length"], one["type"]) for one in told] == [
        (begin, size, 0 if data else 3) for begin, size, data in MAP
    ]
    run("nbdinfo", "--can", "multi-conn", uri(running))


def test_who_asks_for_what_is_not_there_reads_why(running: Served) -> None:
    with pytest.raises(AssertionError, match="the newest is disk@12:00"):
        run("qemu-img", "info", uri(running, "gone"))


def test_nbdcopy_over_four_connections(running: Served, plain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.raw"
    run("nbdcopy", "--connections=4", uri(running), copy)
    assert copy.read_bytes() == CONTENT
    run("nbdcopy", "--connections=4", "--flush", plain, uri(running, "scratch"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", plain, uri(running, "scratch"))


def test_fio_reads_back_what_it_wrote(running: Served, tmp_path: Path) -> None:
    if "nbd" not in run("fio", "--enghelp"):
        pytest.skip("this fio has no NBD engine")
    job = ("--ioengine=nbd", f"--uri={uri(running, 'scratch')}", "--rw=randrw", "--bsrange=512-128k", "--iodepth=16")
    verify = ("--verify=crc32c", "--verify_backlog=64", "--randseed=1", "--fsync=50")
    told = run("fio", "--name=nbd", f"--size={SIZE // MIB}M", *job, *verify, "--output-format=json", f"--aux-path={tmp_path}")
    jobs: list[dict[str, Any]] = json.loads(told[told.index("{") :])["jobs"]
    assert jobs[0]["error"] == 0
    assert jobs[0]["read"]["total_ios"] > 100
