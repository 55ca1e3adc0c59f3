# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a command prints, and where (ux 4.1, 4.5): results on standard output, all else on standard error.

- With `--json`, standard output holds exactly one document: the command's result, or else its failure. Lines and tables
  are for people and are not printed then.
- `-q` silences all but failures: lines, tables and notes; not the document, which was asked for by name, nor a recovery key,
  which is shown once and kept nowhere.
- Everything printed here goes through `visible`: nobody has to remember where a name came from.
- Tables fold what does not fit on a terminal, between words where they can, and never cut; in a pipe they are as wide as their
  content, without colour.
- `NO_COLOR` (not empty) and `TERM=dumb` (or `unknown`) mean no colour; `TERM=dumb` also no moving progress.
- What the stream's encoding cannot show is written as its code, instead of failing in the middle of a listing.

File contents (`cat`, `restore --to -`) are bytes and go to `sys.stdout.buffer` directly.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, TextIO, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from everywhen.interfaces.cli.column_widths import column_widths
from everywhen.services.escape import visible
from everywhen.services.failures import Failure

_STYLES = {"good": "green", "warn": "yellow", "bad": "bold red", "faint": "dim"}
_PIPE_WIDTH = 100_000
"""Wider than any row; rich makes a table only as wide as its content."""
_DRAWN_WIDTH = 100
_BETWEEN = 2
"""Blanks between two columns."""


class Output:
    """The two streams of one command. `out` and `err` are text streams, `env` the environment."""

    def __init__(self, out: TextIO, err: TextIO, env: Mapping[str, str], *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.kept = "The repository is whole; what was reported as done is kept."
        """What a Ctrl-C right now leaves behind; a command says it better as it goes on. (The default is I-9.)"""
        self._out = _console(out, env)
        self._err = _console(err, env)
        self._documents = 0
        self.before_a_line: Callable[[], None] = lambda: None
        """Called before a line of the result goes to a terminal: whoever draws a moving line there takes it away until the next
        drawing."""

    @property
    def moving(self) -> bool:
        """Whether standard error is a terminal on which lines can be drawn over."""
        return self._err.is_terminal and not self._err.is_dumb_terminal

    @property
    def width(self) -> int:
        """Columns for what is drawn: those of the terminal, or as many as one usually has."""
        return self._out.width if self._out.is_terminal else _DRAWN_WIDTH

    def can_draw(self, text: str) -> bool:
        """Whether standard output can show these characters."""
        try:
            text.encode(self._out.encoding)
        except UnicodeEncodeError:
            return False
        return not self._out.is_dumb_terminal

    @property
    def err(self) -> Console:
        """The console of standard error, for progress."""
        return self._err

    def unheard(self) -> None:
        """From now on what cannot be written beside the result is dropped, and ends nothing: nobody may be there any more."""
        self._err.file = cast("TextIO", _Unheard(self._err.file))

    def document(self, value: Mapping[str, Any] | Sequence[Any]) -> None:
        """The one JSON document of a command with `--json`; without, nothing is printed."""
        if not self.as_json:
            return
        if self._documents:
            raise AssertionError("a second JSON document on standard output")
        self._documents += 1
        _write(self._out, json.dumps(value, indent=2, allow_nan=False))

    def line(self, text: str = "", *, style: str = "") -> None:
        """One line of the result; `style` is good, warn, bad or faint, and never the only bearer of a meaning."""
        if not (self.as_json or self.quiet):
            if self._out.is_terminal:
                self.before_a_line()
            _write(self._out, visible(text), style)

    def once(self, text: str = "") -> None:
        """One line that cannot be had again: printed even with `-q`."""
        if not self.as_json:
            _write(self._out, visible(text))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
        """A table of the result, with a head line; the columns named in `right` are figures."""
        if self.as_json or self.quiet:
            return
        figures = set(right)
        table = Table(box=None, pad_edge=False, padding=(0, _BETWEEN, 0, 0), header_style="bold", show_edge=False)
        shown = [[visible(cell) for cell in row] for row in rows]
        room = self._out.width - _BETWEEN * (len(columns) - 1)
        fitting = column_widths(columns, shown, room) if self._out.is_terminal else None
        widths: Sequence[int | None] = fitting or [None] * len(columns)
        for column, width in zip(columns, widths, strict=True):
            table.add_column(Text(column), justify="right" if column in figures else "left", overflow="fold", width=width)
        for cells in shown:
            table.add_row(*map(Text, cells))
        with self._out.capture() as captured:
            self._out.print(table)
        for line in captured.get().splitlines():
            _write_raw(self._out, line.rstrip())

    def note(self, text: str) -> None:
        """One line beside the result, on standard error."""
        if not self.quiet:
            _write(self._err, visible(text))

    def machine_line(self, text: str) -> None:
        """One line for a program that reads standard error (`--progress json`); printed even with `-q`."""
        _write_raw(self._err, text)

    def warn(self, text: str) -> None:
        """One line that somebody should read, on standard error."""
        if not self.quiet:
            _write(self._err, f"warning: {visible(text)}", "warn")

    def failure(self, failure: Failure) -> None:
        """What happened to what; what is safe; what to do. With `--json` the document, where none was printed before.

        For people (and when the result is already out, for everybody) it stands on standard error.
        """
        if self.as_json and not self._documents:
            self.document(failure.document())
            return
        _write(self._err, visible(failure.what), "bad")
        for text in (failure.safe, *failure.do):
            if text:
                _write(self._err, f"  {visible(text)}")


class _Unheard:
    """A stream whose reader may go, as a terminal that is closed, and whose disk may be full."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._leave(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._leave(error)

    def _leave(self, error: OSError) -> None:
        if error.errno in (errno.EPIPE, errno.EIO):  # or the interpreter fails once more while it flushes at exit
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


def _console(stream: TextIO, env: Mapping[str, str]) -> Console:
    terminal = stream.isatty()
    colour = terminal and not env.get("NO_COLOR") and env.get("TERM", "") not in ("dumb", "unknown")
    return Console(
        file=stream,
        force_terminal=terminal,
        color_system="auto" if colour else None,
        no_color=not colour,
        width=None if terminal else _PIPE_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
        _environ=env,
    )


def _write(console: Console, text: str, style: str = "") -> None:
    if console.is_terminal:  # through rich, which keeps a moving progress line below what is printed
        shown = Text(_encodable(console, text), style=_STYLES.get(style, ""))
        console.print(shown, soft_wrap=True)
    else:
        _write_raw(console, text)


def _write_raw(console: Console, text: str) -> None:
    console.file.write(_encodable(console, text) + "\n")
    console.file.flush()


def _encodable(console: Console, text: str) -> str:
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)
