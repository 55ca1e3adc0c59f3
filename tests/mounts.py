# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen mount` as it runs, for tests that look into it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from itertools import takewhile
from pathlib import Path

import pytest

from tests.program import Done, Program, ended

can_mount = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None,
    reason="/dev/fuse or fusermount3 is not there, or not for this user",
)


class Mount:
    """A mount that runs; taken away at the end, whatever has become of it."""

    def __init__(self, program: Program, folder: Path, prefix: tuple[str, ...] = ()) -> None:
        """Returns when it is mounted."""
        self.folder = folder
        self.process = program.start("mount", folder, "--json", prefix=prefix)
        out = self.process.stdout
        assert out is not None
        self.document = json.loads("".join(takewhile(lambda line: line != "}\n", out)) + "}")

    def take_away(self) -> None:
        self.process.kill()
        self.process.communicate()
        subprocess.run(["fusermount3", "-uzq", self.folder], check=False)

    def moments(self, vm: str = "web1") -> list[Path]:
        """The folders of the points, oldest first."""
        return [self.folder / vm / name for name in sorted(set(os.listdir(self.folder / vm)) - {"@latest"})]

    def end(self, number: signal.Signals) -> Done:
        """By a signal."""
        self.process.send_signal(number)
        return ended(self.process)
