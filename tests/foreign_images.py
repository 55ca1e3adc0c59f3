# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disk images and file systems that other programs made: a folder beside this repository has them, with what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "shared" / "images"

needs_images = [
    pytest.mark.skipif(not (SOURCE / "images.json").exists(), reason="the folder with others' images is not here"),
    pytest.mark.xdist_group("foreign-images"),  # so that they are unpacked once
]


def listed_images() -> list[dict[str, Any]]:
    """What is said of each; nothing where the folder is not here."""
    path = SOURCE / "images.json"
    entries: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return entries
