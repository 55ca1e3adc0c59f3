# SPDX-License-Identifier: AGPL-3.0-or-later
"""A command in a pause is ended with `pause`, also by a signal that comes before its process is known."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from typing import Any, cast

import pytest

from everywhen.interfaces.cli import pause
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.output import Output


def test_a_signal_while_the_command_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    asked: list[str] = []

    def ask(_context: Context, _vm: str, request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["wish"])
        return {"resumed": True}

    def begin(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        begun.append(real(command, **how))
        signal.raise_signal(signal.SIGTERM)  # it has begun, and nobody has been told of it
        return begun[-1]

    real = subprocess.Popen
    monkeypatch.setattr(pause, "ask_capture", ask)
    monkeypatch.setattr(subprocess, "Popen", begin)
    context = Context(Output(io.StringIO(), io.StringIO(), os.environ), os.environ)
    try:
        with pytest.raises(KeyboardInterrupt):
            cast("Any", pause)._around(context, "web1", {"wish": "pause", "seconds": 60}, ["sleep", "60"])
        assert [process.poll() for process in begun] == [-signal.SIGTERM]
    finally:
        for process in begun:
            process.kill()
            process.wait()
    assert asked == ["pause", "resume"]
