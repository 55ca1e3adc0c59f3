# SPDX-License-Identifier: AGPL-3.0-or-later
"""Processes that tests start and that would run for ever: they end with the test process, even if that is killed."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

TIED = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
"""Before a command: its process is killed when the thread that started it has ended, so start none in a thread of a pool.

Whoever changes its user afterwards is free again (prctl(2), PR_SET_PDEATHSIG).
"""


@contextmanager
def running(command: Sequence[str | Path], folder: Path, ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """It runs in `folder`, whatever it says in a file there, from when it is ready; it is killed at the end."""
    name = Path(command[0]).name
    log = folder / f"{name}.log"
    with log.open("wb") as said:
        process = subprocess.Popen([*TIED, *command], cwd=folder, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{name} did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.02)  # between two questions whether it is ready
        yield process
    finally:
        process.kill()
        process.wait()
