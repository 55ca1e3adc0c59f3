# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writing to a disk's image, of whatever format, through QEMU's own writer of it: `qemu-nbd` (QEMU, docs/tools/qemu-nbd.rst).

So qcow2, chains of images, and devices are one case, and what QEMU keeps about a disk in its image (snapshots, bitmaps) stays
right. It holds QEMU's locks on the image meanwhile: no VM starts with it. It ends when we do: its only client hangs up then.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from everywhen.capture.stored_disk import StoredDisk
from everywhen.nbd.connection import NbdConnection, NbdError
from everywhen.services.failures import Busy, Failed, NoSpace, NotFound

_DRIVERS = {"vhd": "vpc"}
"""QEMU's names of formats, where they are others than ours."""
_START_S, _LOCKED_S, _LOOK_S, _AGAIN_S = 20.0, 10.0, 0.02, 0.2
_LAST_WORDS = 500
_ANSWER_S = 600.0
"""A flush may take as long as the disk needs for what lies in memory."""
_UNDER_WAY = 8
"""Requests that wait for their answers."""


class QemuTools:
    """The tools of QEMU's on this host."""

    def __init__(self, search: str | None) -> None:
        """`search`: folders of programs, as in PATH. Raises NotFound."""
        self.nbd = _program("qemu-nbd", search, "qemu-utils")
        self.img = _program("qemu-img", search, "qemu-utils")
        self.tie = [_program("setpriv", search, "util-linux"), "--pdeathsig", "TERM", "--"]
        """Before we have connected, it would not notice that we are gone."""

    def resize(self, image: StoredDisk, size: int) -> None:
        """Give a disk another size; what is beyond a smaller one is lost. Raises Failed."""
        command = [self.img, "resize", "--shrink", "--image-opts", _options(image), str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{image.path} cannot be given {size:,} bytes: {_last(done.stderr)}", on=image.path)


class ImageWriter:
    """An image, open for writing. A context manager; only `flush` promises anything."""

    def __init__(self, tools: QemuTools, image: StoredDisk) -> None:
        """Raises Busy when a VM or another tool has it open, Failed."""
        self._path = image.path
        self._answers: deque[int] = deque()
        with ExitStack() as undo:
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="everywhen-write-", ignore_cleanup_errors=True))
            self._process, connected = _served(tools, image, folder)
            undo.callback(self._end)
            with self._failing():
                self._connection = NbdConnection(connected, "", timeout=_ANSWER_S)
            self.size = self._connection.offer.size
            self._closing = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._closing:
            self._connection.close()

    def write(self, offset: int, data: bytes) -> None:
        """Begin to write these bytes. Raises Failed, also for what was begun before."""
        with self._failing():
            zeroes = not data[0] and data.count(0) == len(data)
            connection = self._connection
            self._answers.append(connection.send_zeroes(offset, len(data)) if zeroes else connection.send(offset, data))
            while len(self._answers) > _UNDER_WAY:
                connection.answer(self._answers.popleft())

    def flush(self) -> None:
        """Everything that was written is durable on return. Raises Failed."""
        with self._failing():
            while self._answers:
                self._connection.answer(self._answers.popleft())
            self._connection.answer(self._connection.send_flush())

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except NbdError as error:
            kind = NoSpace if str(error).endswith(f"error {errno.ENOSPC}") else Failed
            raise kind(f"{self._path} cannot be written: {error}.", on=self._path, do=["Is its file system full?"]) from error

    def _end(self) -> None:
        """Wait until it has let go of the image: its only client has hung up."""
        try:
            self._process.wait(_START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _served(tools: QemuTools, image: StoredDisk, folder: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A server of the image, and a connection to it. One of a run that was killed may have the image for a moment more."""
    until = time.monotonic() + _LOCKED_S
    place, said = os.path.join(folder, "nbd"), os.path.join(folder, "said")
    while True:
        command = [*tools.tie, tools.nbd, "--discard=unmap", "--socket", place, "--image-opts", _options(image)]
        with open(said, "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        try:
            if (connected := _connected(process, place)) is not None:
                return process, connected
        except BaseException:
            process.kill()
            process.wait()
            raise
        with open(said, encoding="utf-8", errors="replace") as log:
            words = _last(log.read())
        if "lock" not in words:
            raise Failed(f"{image.path} cannot be opened for writing: {words}.", on=image.path)
        if time.monotonic() > until:
            raise Busy(f"{image.path} is in use by a running virtual machine or another tool of QEMU's.", on=image.path)
        time.sleep(_AGAIN_S)


def _connected(process: subprocess.Popen[bytes], place: str) -> socket.socket | None:
    """Connect as soon as it listens, of which it says nothing; None when it has ended. Raises Failed."""
    until = time.monotonic() + _START_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(place)
        except OSError:
            connection.close()
        else:
            return connection
        if process.poll() is not None:
            return None
        if time.monotonic() > until:
            raise Failed(f"qemu-nbd does not serve within {_START_S:g} s.", on=place)
        time.sleep(_LOOK_S)


def _options(image: StoredDisk) -> str:
    """The image as QEMU's block layer is told of one; a comma in a name is doubled."""
    kind = "host_device" if stat.S_ISBLK(os.stat(image.path).st_mode) else "file"
    driver = _DRIVERS.get(image.image_format, image.image_format)
    return f"driver={driver},file.driver={kind},file.filename={image.path.replace(',', ',,')}"


def _program(name: str, search: str | None, package: str) -> str:
    """Raises NotFound."""
    found = shutil.which(name, path=search)
    if found is None:
        raise NotFound(f"{name} is not there.", on=name, do=[f"apt-get install {package}"])
    return found


def _last(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return " ".join(lines)[-_LAST_WORDS:].rstrip(".") or "it did not say why"
