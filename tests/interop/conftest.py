# SPDX-License-Identifier: AGPL-3.0-or-later
"""Others' images, unpacked once for all tests that use them."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.foreign_images import SOURCE


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("images")
    with (SOURCE / "images.tar.zst").open("rb") as archive:
        unpacker = subprocess.Popen(["zstd", "-dc"], stdin=archive, stdout=subprocess.PIPE)
        subprocess.run(["tar", "--sparse", "-xf", "-", "-C", str(folder)], stdin=unpacker.stdout, check=True)
        assert unpacker.stdout
        unpacker.stdout.close()
        assert unpacker.wait() == 0
    for packed in folder.glob("qcow2/*/*.bin.gz"):
        with gzip.open(packed) as source, packed.with_suffix("").open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    yield folder
    shutil.rmtree(folder)
