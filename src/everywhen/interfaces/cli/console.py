# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest's serial console: on a terminal, both ways and raw; anywhere else its lines, made harmless.

On a terminal it is what a cable to a real one would be: what the guest sends steers it, as ssh to a foreign machine does. Only
who sits at one gets that; everything that is kept or read by programs goes through `visible`.
"""

from __future__ import annotations

import os
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from everywhen.interfaces.cli.output import Output

END = b"\x1d"
"""Ctrl-]"""
_LONGEST_LINE = 4096
_KEYS = 4096
_RESET = b"\x1b[!p\x1b[?1049l\x1b[?25h\x1b[0m\r\n"
"""Soft reset (DECSTR), back from the alternate screen, the cursor shown, no colour: what a guest may have left."""


class Console(Protocol):
    """Where a guest's text goes, and where keys come from."""

    keys: int | None
    """A descriptor that is readable when keys have come; None where there are none."""

    def show(self, text: bytes) -> None:
        """What the guest has sent."""

    def typed(self, to: socket.socket) -> bool:
        """Hand on the keys that have come; False when it is over: Ctrl-], or there is nobody any more."""


class Lines:
    """To standard output, line by line."""

    keys: int | None = None

    def __init__(self, output: Output) -> None:
        self._output = output
        self._begun = b""

    def show(self, text: bytes) -> None:
        """See `Console`."""
        *lines, self._begun = (self._begun + text).split(b"\n")
        while len(self._begun) > _LONGEST_LINE:
            lines.append(self._begun[:_LONGEST_LINE])
            self._begun = self._begun[_LONGEST_LINE:]
        for line in lines:
            self._line(line)

    def typed(self, to: socket.socket) -> bool:
        """Nobody types here."""
        raise AssertionError(to)

    def finish(self) -> None:
        """The last line may have no end: a prompt."""
        if self._begun:
            self._line(self._begun)
            self._begun = b""

    def _line(self, line: bytes) -> None:
        self._output.line(line.rstrip(b"\r").decode(errors="surrogateescape"))


class Terminal:
    """A terminal, raw."""

    def __init__(self, keys: int, screen: int) -> None:
        self.keys: int | None = keys
        self._keys = keys
        self._screen = screen

    def show(self, text: bytes) -> None:
        """See `Console`."""
        while text:
            text = text[os.write(self._screen, text) :]

    def typed(self, to: socket.socket) -> bool:
        """See `Console`. What a guest does not take is dropped, as a serial port drops it."""
        try:
            pressed = os.read(self._keys, _KEYS)
        except OSError:  # the terminal is gone
            return False
        before, end, _ = pressed.partition(END)
        with suppress(BlockingIOError, ConnectionError):  # that a copy has ended is seen elsewhere
            to.send(before, socket.MSG_DONTWAIT)
        return bool(pressed) and not end


@contextmanager
def guest_console(output: Output) -> Iterator[Console]:
    """The terminal, if the program has one and its output is for people; as it was at the end, whatever happens."""
    if output.as_json or output.quiet or not (sys.stdin.isatty() and sys.stdout.isatty()):
        lines = Lines(output)
        try:
            yield lines
        finally:
            lines.finish()
        return
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    before = termios.tcgetattr(keys)
    try:
        tty.setraw(keys)
        raw = termios.tcgetattr(keys)
        raw[1] |= termios.OPOST  # our own lines end with a line feed alone
        termios.tcsetattr(keys, termios.TCSANOW, raw)
        yield Terminal(keys, screen)
    finally:
        with suppress(termios.error, OSError):  # it may be gone
            termios.tcsetattr(keys, termios.TCSAFLUSH, before)
            os.write(screen, _RESET)
