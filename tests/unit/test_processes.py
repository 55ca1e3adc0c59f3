# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a test starts ends with it, also where nobody is left to end it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.processes import TIED

_PARENT = """
import subprocess, sys
subprocess.Popen([*sys.argv[1:], "sh", "-c", "echo it runs; exec sleep 600"]).wait()
"""


def test_who_is_killed_leaves_nothing_running() -> None:
    command: list[str | Path] = [sys.executable, "-c", _PARENT, *TIED]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"it runs\n"
        parent.kill()
        # What it has started holds the other end: this returns when that has ended, too.
        parent.communicate(timeout=20)
