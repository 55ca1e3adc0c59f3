# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every way in which a command can end: its exit code, its words, its document."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

import pytest
import typer

from everywhen.interfaces.cli.failures import guarded
from everywhen.interfaces.cli.output import Output
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.storage.base import OutOfSpace


def ended(command: Callable[[], int | None], *, as_json: bool = True) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    output = Output(out, err, {}, as_json=as_json)
    return guarded(output, command, repository=lambda: "/backup"), out.getvalue(), err.getvalue()


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def command() -> NoReturn:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (NotFound("No VM."), "not_found", 6),
        (WrongUsage("What?"), "wrong_usage", 2),
        (OutOfSpace("packs/x", "full"), "out_of_space", 8),
        (OSError(errno.EACCES, "denied", "/image"), "not_allowed", 7),
        (KeyboardInterrupt(), "interrupted", 130),
        (typer.Abort(), "interrupted", 130),
        (typer.BadParameter("no such size"), "wrong_usage", 2),
    ],
)
def test_a_failure_is_one_document_and_its_exit_code(error: BaseException, code: str, exit_code: int) -> None:
    returned, out, err = ended(raising(error))
    document = json.loads(out)["error"]
    assert (returned, document["code"], document["exit"]) == (exit_code, code, exit_code)
    assert set(document) == {"code", "exit", "what", "on", "safe", "do"}
    assert err == ""


def test_success_and_exits_by_the_option_parser() -> None:
    assert ended(lambda: None) == (0, "", "")
    assert ended(lambda: 5) == (5, "", "")
    assert ended(raising(typer.Exit(3))) == (3, "", "")


def test_ctrl_c_says_what_is_kept() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(out, err, {})

    def command() -> NoReturn:
        output.kept = "38 % are stored and will not be read again."
        raise KeyboardInterrupt

    assert guarded(output, command) == 130
    assert err.getvalue() == "Interrupted.\n  38 % are stored and will not be read again.\n"


def test_a_fault_of_the_program_is_a_document_too_and_keeps_its_traceback() -> None:
    out = io.StringIO()
    with pytest.raises(ZeroDivisionError):
        guarded(Output(out, io.StringIO(), {}, as_json=True), raising(ZeroDivisionError("oops")))
    assert json.loads(out.getvalue())["error"]["what"] == "A fault in the program: ZeroDivisionError: oops"


def test_wrong_options_name_the_command_that_helps() -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def points(limit: int) -> None:
        """Only its options matter here."""

    _, _, err = ended(lambda: app(["x"], standalone_mode=False, prog_name="everywhen points"), as_json=False)
    assert err.startswith("Invalid value for 'limit': ")
    assert err.endswith("  everywhen points --help\n")


SCRIPT = """
import io, os, signal, sys
from everywhen.interfaces.cli.failures import guarded, two_step_interrupt
from everywhen.interfaces.cli.output import Output

output = Output(sys.stdout, sys.stderr, os.environ)

def command():
    with two_step_interrupt(output):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            print("never")
        finally:
            {cleaning}

sys.exit(guarded(output, command))
"""


def script(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="os.kill sends no Ctrl-C on Windows")
def test_ctrl_c_once_ends_cleanly_and_twice_at_once() -> None:
    once = script(SCRIPT.format(cleaning="print('cleaned')"))
    assert (once.returncode, once.stdout) == (130, "cleaned\n")
    assert once.stderr.startswith("Stopping. Ctrl-C again: at once.\nInterrupted.\n")
    twice = script(SCRIPT.format(cleaning="os.kill(os.getpid(), signal.SIGINT); print('cleaned')"))
    assert (twice.returncode, twice.stdout) == (130, "")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="os.kill sends no Ctrl-C on Windows")
def test_ctrl_c_in_the_middle_of_a_line() -> None:
    """Of progress, say: who prints holds the stream then."""
    body = """
        import io, os, signal, sys
        from everywhen.interfaces.cli.failures import guarded, two_step_interrupt
        from everywhen.interfaces.cli.output import Output
        class Pressed(io.FileIO):
            times = 0
            def write(self, data):
                self.times += 1
                if self.times == 1:
                    os.kill(os.getpid(), signal.SIGINT)
                return super().write(data)
        output = Output(sys.stdout, io.TextIOWrapper(io.BufferedWriter(Pressed(2, "w", closefd=False))), {})
        def command():
            with two_step_interrupt(output):
                output.machine_line("half of it")
        sys.exit(guarded(output, command))
    """
    done = script(textwrap.dedent(body))
    assert done.returncode == 130, done
    assert "Stopping. Ctrl-C again: at once.\n" in done.stderr
    assert "Interrupted." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals on Windows")
def test_ctrl_c_twice_gives_the_terminal_its_cursor_back() -> None:
    import pty

    ours, theirs = pty.openpty()
    body = SCRIPT.format(cleaning="output.err.show_cursor(False); os.kill(os.getpid(), signal.SIGINT); print('cleaned')")
    with subprocess.Popen(
        [sys.executable, "-c", body], stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        assert process.wait(60) == 130
        shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert shown.index("Stopping.") < shown.index("\x1b[?25l") < shown.index("\x1b[?25h")


def test_a_closed_pipe_is_no_failure_to_complain_about() -> None:
    body = """
        import os, sys
        from everywhen.interfaces.cli.failures import guarded
        from everywhen.interfaces.cli.output import Output
        output = Output(sys.stdout, sys.stderr, {})
        def command():
            for _ in range(100_000):
                output.line("web1")
        sys.exit(guarded(output, command))
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "web1\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141
