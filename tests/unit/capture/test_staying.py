# SPDX-License-Identifier: AGPL-3.0-or-later
"""What keeps a guest from being migrated while a disk of it is pushed; what QEMU does with it: `test_migration_cli.py`."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any, cast

import pytest

from everywhen.capture.staying import stay


def test_an_image_for_which_there_is_no_room_is_not_left_behind(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            stay(cast(Any, None), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
