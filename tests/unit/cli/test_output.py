# SPDX-License-Identifier: AGPL-3.0-or-later
"""What commands print, where, and for whom."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import nullcontext

import pytest

from everywhen.interfaces.cli.output import Output
from everywhen.services.escape import visible
from everywhen.services.failures import NotFound

LONG = "x" * 300
HOSTILE = [
    ("plain name.txt", "plain name.txt"),
    ("b\u00fcro \u65e5\u672c", "b\u00fcro \u65e5\u672c"),
    ("\x1b[2J\x07", "\\x1b[2J\\x07"),
    ("line\nforged\r\ttab", "line\\x0aforged\\x0d\\x09tab"),
    ("\u202etxt.exe", "\\u202etxt.exe"),
    ("a\u200bb\ufeff\u2028\u2029", "a\\u200bb\\ufeff\\u2028\\u2029"),
    ("\x9b31m\x7f", "\\x9b31m\\x7f"),
    ("caf\udce9", "caf\\xe9"),
    ("\ud800", "\\ud800"),
    ("\U000e0041", "\\U000e0041"),
    ("[bold]no markup[/bold] :smile:", "[bold]no markup[/bold] :smile:"),
    ("C:\\Users\\ann", "C:\\Users\\ann"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Latin(io.StringIO):
    encoding = "latin-1"


def made(
    out: io.StringIO | None = None, *, env: Mapping[str, str] | None = None, as_json: bool = False, quiet: bool = False
) -> tuple[Output, io.StringIO, io.StringIO]:
    streams = out or io.StringIO(), io.StringIO()
    return Output(*streams, env or {"TERM": "xterm-256color", "COLUMNS": "60"}, as_json=as_json, quiet=quiet), *streams


@pytest.mark.parametrize(("name", "shown"), HOSTILE)
def test_names_are_made_visible(name: str, shown: str) -> None:
    assert visible(name) == shown


@pytest.mark.parametrize("name", [name for name, _ in HOSTILE])
@pytest.mark.parametrize("terminal", [False, True])
def test_no_hostile_name_reaches_a_stream_raw(name: str, terminal: bool) -> None:
    out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    output = Output(out, err, {"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "400"})
    output.line(name)
    output.table(["NAME"], [[name]])
    output.note(name)
    output.warn(name)
    output.failure(NotFound(name, safe=name, do=[name]))
    text = out.getvalue() + err.getvalue()
    assert all(char == "\n" or char.isprintable() for char in text)
    assert text.count("\n") == 8
    assert text.count(visible(name)) == 7


def test_a_piped_table_is_never_cut_and_has_no_colour() -> None:
    output, out, _ = made()
    output.table(["VM", "SIZE", "NOTE"], [["web1", "4.2 GB", LONG], ["db", "12 B", ""]], right=["SIZE"])
    assert out.getvalue() == f"VM      SIZE  NOTE\nweb1  4.2 GB  {LONG}\ndb      12 B\n"


def test_a_table_on_a_terminal_folds_and_loses_nothing() -> None:
    output, out, _ = made(Terminal(), env={"TERM": "xterm", "COLUMNS": "60", "NO_COLOR": "1"})
    output.table(["VM", "NOTE"], [["web1", LONG]])
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert out.getvalue().count("x") == 300


@pytest.mark.parametrize("columns", [72, 80, 102])
def test_a_table_on_a_narrow_terminal_breaks_no_word_that_somebody_copies(columns: int) -> None:
    output, out, _ = made(Terminal(), env={"TERM": "xterm", "COLUMNS": str(columns), "NO_COLOR": "1"})
    heads = ["POINT", "VM", "TIME (UTC)", "AGE", "CONSISTENCY", "DISKS", "CHANGED", "STORED", "NOTE"]
    row = ["p-6p9aq86xy0k7", "web", "2026-11-22 19:44:15", "39 s", "crash", "2", "524 kB", "4.5 kB", '"before update"']
    output.table(heads, [row], right=["DISKS", "CHANGED", "STORED"])
    assert max(map(len, out.getvalue().splitlines())) <= columns
    words = [word for cell in row for word in cell.split()]
    assert [word for word in words if word not in out.getvalue().split()] == []
    # Heads give way first, but where there is room for what is in a column in one line it stands in one.
    assert ("2026-11-22 19:44:15" in out.getvalue()) == (columns == 102)


@pytest.mark.parametrize(
    ("env", "colour"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colour_only_where_it_is_wanted(env: dict[str, str], colour: bool) -> None:
    output, out, _ = made(Terminal(), env=env)
    output.line("all right", style="good")
    output.table(["VM"], [["web1"]])
    assert ("\x1b[" in out.getvalue()) == colour


def test_with_json_there_is_exactly_one_document() -> None:
    output, out, err = made(as_json=True)
    output.line("for people")
    output.table(["VM"], [["web1"]])
    output.note("beside")
    output.document({"vm": "a\x1b\u202e\udc80"})
    assert json.loads(out.getvalue()) == {"vm": "a\x1b\u202e\udc80"}
    assert out.getvalue().isascii()
    assert err.getvalue() == "beside\n"
    with pytest.raises(AssertionError, match="second JSON document"):
        output.document({})


def test_a_failure_is_the_document_or_stands_beside_it() -> None:
    failure = NotFound("No VM.", on="wbe1", safe="All is safe.", do=["everywhen status"])
    output, out, err = made(as_json=True)
    output.failure(failure)
    assert json.loads(out.getvalue()) == failure.document()
    assert err.getvalue() == ""
    output, out, err = made(as_json=True)
    output.document([])
    output.failure(failure)
    assert json.loads(out.getvalue()) == []
    assert err.getvalue() == "No VM.\n  All is safe.\n  everywhen status\n"


@pytest.mark.parametrize("heard", [True, False])
def test_what_nobody_reads_may_end_nothing(heard: bool) -> None:
    """`protect` speaks to terminals that are closed, and to logs whose disk is full."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    output = Output(io.StringIO(), Gone(), {})
    if not heard:
        output.unheard()
    with pytest.raises(BrokenPipeError) if heard else nullcontext():
        output.note("it goes on")
    with pytest.raises(BrokenPipeError) if heard else nullcontext():
        output.warn("it was lost")


def test_quiet_silences_all_but_failures() -> None:
    output, out, err = made(quiet=True)
    output.line("a")
    output.table(["VM"], [["web1"]])
    output.note("b")
    output.warn("c")
    output.failure(NotFound("No VM."))
    assert (out.getvalue(), err.getvalue()) == ("", "No VM.\n")


def test_what_the_encoding_lacks_is_written_as_its_code() -> None:
    output, out, _ = made(Latin())
    output.line("b\u00fcro \u65e5")
    output.table(["VM"], [["\u65e5"]])
    assert out.getvalue() == "b\u00fcro \\u65e5\nVM\n\\u65e5\n"
