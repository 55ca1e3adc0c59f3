# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a guest is up, as its serial console shows it: it waits for somebody to log in.

What ends with `login:` is taken for a prompt (agetty, getty of the BSDs, busybox). The text is the guest's: it can show
a prompt that is none, and harms nobody but who asks whether it is up.
"""

from __future__ import annotations

import re

_STEERING = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][0-9A-B]|[=>78c])")
_PROMPT = re.compile(rb"[Ll]ogin: \Z")
_KEPT = 512
"""Bytes: a prompt with the host's name, and what a terminal is told in between."""


class Prompt:
    """Looks for a login prompt in what comes piece by piece."""

    def __init__(self) -> None:
        self._tail = b""

    def seen(self, text: bytes) -> bool:
        """Whether a prompt stands at the end after this piece."""
        self._tail = (self._tail + text)[-_KEPT:]
        return _PROMPT.search(_STEERING.sub(b"", self._tail)) is not None
