# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen mount`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import GET_BACK, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.interfaces.fuse.mount_point import freed
from everywhen.interfaces.service_manager import ServiceManager
from everywhen.repository.reading import opened_points
from everywhen.services.failures import Failed, NotFound
from everywhen.services.translation import as_failure
from everywhen.services.view.folders import Folders
from everywhen.services.view.moments import OpenMoments

_TIDY_S = 5.0
"""So often is looked for what nobody uses any more."""


@app.command("mount", rich_help_panel=GET_BACK)
def mount_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="An empty folder.")],
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Every moment as a folder, read only, until Ctrl-C: DIR/VM/@WHEN/files/etc, DIR/VM/@WHEN/disk/vda.qcow2."""
    context = context_of(locals())
    context.output.kept = "Nothing is mounted any more. The repository was only read."
    path = freed(folder)
    try:
        from everywhen.interfaces.fuse.filesystem import Mount, serve  # it loads libfuse, which other commands do not need
    except OSError as error:
        raise NotFound(f"libfuse 3 is not there ({error}).", on=folder, do=["apt-get install fuse3"]) from error
    told = _Told(context)
    with context.repository() as repository:
        url = repository.store.url
        moments = OpenMoments(
            repository, "mount", zone=context.zone, monotonic=time.monotonic, linger_s=0, before=lambda _vm: None
        )
        with closing(moments):
            folders = Folders(
                repository,
                moments,
                zone=context.zone,
                monotonic=time.monotonic,
                before=lambda vm: ship_newest(context, vm),
                say=told.noticed,
            )

            def ready() -> None:
                context.output.document({"mounted": path, "repository": url})
                context.output.line(f"{folder}: mounted. Ctrl-C, or fusermount3 -u {folder}, ends it.")
                ServiceManager.of(context.env).tell(READY="1", STATUS=f"Mounted on {path}")

            with closing(folders), _tidying(context, folders), opened_points(repository, f"mount {path}", [], packs_known=True):
                serve(Mount(folders, url=url, say=told.failed, ready=ready), path)
    context.output.line(f"{folder}: unmounted.")


class _Told:
    """What goes wrong, a line each on standard error. Called by several threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()

    def noticed(self, line: str) -> None:
        """What whoever looks there must know."""
        with self._lock:
            self._context.output.warn(line)

    def failed(self, line: str) -> None:
        """What could not be read, and why."""
        with self._lock:
            self._context.output.failure(Failed(line))


@contextmanager
def _tidying(context: Context, folders: Folders) -> Iterator[None]:
    """While the body runs, moments that nobody uses are let go of."""
    ended = threading.Event()

    def tidy() -> None:
        while not ended.wait(_TIDY_S):
            try:
                folders.held.tidy()
            except Exception as error:
                failure = as_failure(error, url=context.opened_url)
                if failure is None:
                    raise
                context.output.warn(failure.what)  # a lease that is left ends by itself within a minute

    thread = threading.Thread(target=tidy, name="tidy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
