# SPDX-License-Identifier: AGPL-3.0-or-later
"""Damaged images: whatever the bytes of headers and tables are, there is an ImageError or there are bytes of the right
number; never another exception, a hang or a memory bomb. Checksums are made right again in half of the cases, so that
the checks behind them are reached.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everywhen.block.image_errors import ImageError
from everywhen.block.open_image import open_image
from everywhen.formats.images.crc32c import crc32c
from tests.long_forms import SOAK

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img, which makes the samples, is not installed")

PAYLOAD = 0x5A
MIB = 1 << 20
EXAMPLES = 2000 if SOAK else 24
SECONDS = 3.0
MEMORY = 300 * MIB

SAMPLES = {
    "qcow2": ["-f", "qcow2", "-o", "cluster_size=4k"],
    "qcow2-subclusters": ["-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k"],
    "vhd": ["-f", "vpc", "-o", "force_size=on"],
    "vhdx": ["-f", "vhdx", "-o", "block_size=1M"],
    "vmdk": ["-f", "vmdk"],
    "vmdk-stream": ["-f", "vmdk", "-o", "subformat=streamOptimized"],
    "vmdk-text": ["-f", "vmdk", "-o", "subformat=monolithicFlat"],
    "vdi": ["-f", "vdi"],
}


def seal_vhd(image: bytearray) -> None:
    """Checksums of the front copy of the footer and of the dynamic header."""
    for start, size, at in ((0, 512, 64), (512, 1024, 36)):
        image[start + at : start + at + 4] = bytes(4)
        image[start + at : start + at + 4] = struct.pack(">I", ~sum(image[start : start + size]) & 0xFFFFFFFF)


def seal_vhdx(image: bytearray) -> None:
    """Checksums of headers and region tables."""
    for start, size in ((65536, 4096), (131072, 4096), (196608, 65536), (262144, 65536)):
        image[start + 4 : start + 8] = bytes(4)
        image[start + 4 : start + 8] = struct.pack("<I", crc32c(bytes(image[start : start + size])))


SEALS: dict[str, Callable[[bytearray], None]] = {"vhd": seal_vhd, "vhdx": seal_vhdx}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, list[int]]]:
    """Each image with the places in it that mean something: bytes that are neither zero nor payload."""
    folder = tmp_path_factory.mktemp("samples")
    found = {}
    for name, options in SAMPLES.items():
        image = folder / name
        subprocess.run(["qemu-img", "create", *options, str(image), "8M"], check=True, capture_output=True)
        if name == "vmdk-stream":
            raw = folder / "raw"
            raw.write_bytes(bytes([PAYLOAD]) * 200_000 + bytes(8 * MIB - 200_000))
            subprocess.run(["qemu-img", "convert", "-O", *options[1:], str(raw), str(image)], check=True, capture_output=True)
        else:
            commands = [f"write -P {PAYLOAD} {at} 70k" for at in (0, 3 * MIB, 5 * MIB + 4096)]
            commands += ["write -c -P 90 6M 16k"] if name.startswith("qcow2") else []
            arguments = [part for command in commands for part in ("-c", command)]
            subprocess.run(["qemu-io", *arguments, str(image)], check=True, capture_output=True)
        content = image.read_bytes()
        places = [at for at in range(min(len(content), 4 * MIB)) if content[at] not in (0, PAYLOAD)]
        found[name] = (content, places[:: max(1, len(places) // 4000)])
    return found


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[float, int, bytes]]:
    """(which of the meaningful places, shift from it, new bytes): bit flips come as single bytes."""
    word = st.sampled_from([2, 4, 8]).flatmap(
        lambda size: st.one_of(
            st.binary(min_size=size, max_size=size),
            st.integers(0, 40).map(lambda bit: (1 << bit & (1 << 8 * size) - 1).to_bytes(size, "little")),
            st.integers(0, 40).map(lambda bit: (1 << bit & (1 << 8 * size) - 1).to_bytes(size, "big")),
            st.just(b"\xff" * size),
        )
    )
    one = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(-8, 8), st.one_of(st.binary(min_size=1, max_size=1), word))
    return draw(st.lists(one, min_size=1, max_size=4))


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def read_or_refuse(path: Path, form: str) -> None:
    """Reads what a backup would, as far as that is a matter of tables; with bounds on time and memory."""
    begin = time.perf_counter()
    tracemalloc.reset_peak()
    try:
        with open_image(str(path), format=form) as disk:
            at = 0
            for number, extent in enumerate(disk.extents()):
                assert extent.start == at
                assert extent.length > 0
                at = extent.end
                if number < 500:
                    length = min(extent.length, MIB)
                    assert len(disk.read(extent.start, length)) == length
            assert at == disk.size
    except ImageError:
        pass
    assert time.perf_counter() - begin < SECONDS
    assert tracemalloc.get_traced_memory()[1] < MEMORY


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=changes(), sealed=st.booleans())
def test_changed_bytes(
    name: str,
    samples: dict[str, tuple[bytes, list[int]]],
    tmp_path: Path,
    changed: list[tuple[float, int, bytes]],
    sealed: bool,
) -> None:
    content, places = samples[name]
    image = bytearray(content)
    for where, shift, new in changed:
        at = max(0, places[int(where * len(places))] + shift)
        image[at : at + len(new)] = new
    del image[len(content) :]
    form = SAMPLES[name][1].replace("vpc", "vhd")
    if sealed and form in SEALS:
        SEALS[form](image)
    path = tmp_path / "image"
    path.write_bytes(image)
    read_or_refuse(path, form)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=EXAMPLES // 2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), after=st.integers(-1, 600))
def test_truncation(name: str, samples: dict[str, tuple[bytes, list[int]]], tmp_path: Path, where: float, after: int) -> None:
    content, places = samples[name]
    path = tmp_path / "image"
    path.write_bytes(content[: max(0, places[int(where * len(places))] + after)])
    read_or_refuse(path, SAMPLES[name][1].replace("vpc", "vhd"))


@pytest.mark.parametrize("form", ["qcow2", "vhd", "vhdx", "vmdk", "vdi", None])
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=2000),
    magic=st.sampled_from([b"QFI\xfb\0\0\0\3", b"KDMV", b"vhdxfile", b"conectix", b"COWD", b"# Disk DescriptorFile\n", b""]),
)
def test_arbitrary_bytes(form: str | None, content: bytes, magic: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(magic + content)
    try:
        with open_image(str(path), format=form) as disk:
            assert len(disk.read(0, min(disk.size, MIB))) == min(disk.size, MIB)
            assert sum(extent.length for extent in disk.extents()) == disk.size
    except ImageError:
        pass
