# SPDX-License-Identifier: AGPL-3.0-or-later
"""The one place where a command's failure becomes words, a document and an exit code (ux 4.1, 4.2, 4.5).

Every way in which a command can end passes through `guarded`: its own failures, those of the option parser, of stores and
of the system, Ctrl-C, a closed pipe. A fault of the program keeps its traceback, and still gives the one document.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from everywhen.interfaces.cli.output import Output
from everywhen.services.failures import Exit, Failed, Failure, Interrupted, WrongUsage, from_storage, from_system
from everywhen.storage.base import StorageError

_CLOSED_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended (128 + 13): `everywhen points | head`."""

_SHOW_CURSOR = b"\x1b[?25h\n"
_STOPPING = "Stopping. Ctrl-C again: at once."


def guarded(output: Output, command: Callable[[], int | None], *, repository: Callable[[], str] = str) -> int:
    """Run `command` and return the program's exit code; a failure is printed, a fault of the program raised again.

    `command` returns an exit code or None (done). `repository` gives the name by which the user knows the repository,
    as far as the command has come.
    """
    try:
        return command() or Exit.DONE
    except KeyboardInterrupt as interrupt:
        return _end(output, Interrupted("Interrupted.", safe=output.kept), interrupt)
    except typer.Abort:
        return _end(output, Interrupted("Not confirmed.", safe="Nothing was changed."))
    except typer.Exit as ending:
        return ending.exit_code
    except typer.TyperException as error:
        return _end(output, _usage(error))
    except Failure as failure:
        return _end(output, failure, failure)
    except StorageError as error:
        return _end(output, from_storage(error, url=repository()), error)
    except BrokenPipeError:
        _discard_stdout()
        return _CLOSED_PIPE
    except OSError as error:
        code = _end(output, from_system(error), error)
        try:
            sys.stdout.flush()
        except OSError:
            _discard_stdout()  # it was standard output itself, as on a full disk
        return code
    except Exception as fault:
        what = f"A fault in the program: {type(fault).__name__}: {fault}"
        _end(output, Failed(what, safe=output.kept, do=["Please report it, with what is printed below."]), fault)
        raise


@contextmanager
def two_step_interrupt(output: Output) -> Iterator[None]:
    """Ctrl-C once: KeyboardInterrupt in the main thread, so that all ends cleanly; twice: at once (I-9 makes that safe)."""
    pressed = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            if output.moving:  # a moving line hides the cursor; not through rich, whose lock may be held for long
                os.write(sys.stderr.fileno(), _SHOW_CURSOR)
            os._exit(Exit.INTERRUPTED)
        pressed = True
        try:
            output.note(_STOPPING)
        except RuntimeError:  # it was pressed in the middle of a write to that stream, which cannot be entered twice
            os.write(sys.stderr.fileno(), f"{_STOPPING}\n".encode())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(output: Output, failure: Failure, cause: BaseException | None = None) -> int:
    """Print the failure; the notes of its cause say what was left behind (`block/target.py`)."""
    failure.safe = " ".join(text for text in (failure.safe, *getattr(cause, "__notes__", ())) if text)
    output.failure(failure)
    return failure.exit


def _usage(error: typer.TyperException) -> WrongUsage:
    describe = getattr(error, "format_message", None)
    text = describe() if callable(describe) else str(error)
    if "\n" in text:
        text = "Which command?"  # the parser's text is the whole help page then, which is not a sentence
    context = getattr(error, "ctx", None)
    command = "everywhen" if context is None else context.command_path
    return WrongUsage(" ".join(text.split()) or "Wrong usage.", do=[f"{command} --help"])


def _discard_stdout() -> None:
    """Point standard output nowhere, or the interpreter complains once more while it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
