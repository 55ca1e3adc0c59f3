# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long the names of a capture's sockets may be: 107 bytes (Linux, unix(7): sun_path has 108, with a NUL)."""

from __future__ import annotations

import os
from pathlib import Path

LONGEST = 107


def too_long(folder: Path) -> Path | None:
    """The socket in a VM's folder with the longest name, where that is too long."""
    longest = folder / "sockets" / "export.sock"
    return longest if len(os.fsencode(longest)) > LONGEST else None
