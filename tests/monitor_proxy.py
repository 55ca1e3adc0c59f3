# SPDX-License-Identifier: AGPL-3.0-or-later
"""Stands between the program and a hypervisor's monitor, and records in order what passes; and the order rules of section
"What must be impossible" (docs/capture.md), checked on such a record.

What QEMU says is recorded before the program can hear it, and what the program says before QEMU can: so what stands later in
the record came later.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self


class Said(NamedTuple):
    """One message: `kind` is command, event, refusal (of the command of that name), jobs (all that there are), or state
    (of the guest)."""

    kind: str
    name: str
    data: dict[str, Any]


class MonitorProxy:
    """Listens at `path`; each client gets a connection of its own to the monitor at `upstream`."""

    def __init__(self, path: Path, upstream: Path) -> None:
        self.path = path
        self._upstream = str(upstream)
        self._lock = threading.Lock()
        self._log: list[Said] = []
        self._asked: dict[Any, str] = {}
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for one in self._open:
            _hang_up(one)
        for thread in self._threads:
            thread.join()
        for one in (self._listening, *self._open):
            one.close()

    @property
    def log(self) -> list[Said]:
        """What has passed so far."""
        with self._lock:
            return list(self._log)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            self._open += [client, server]
            try:
                server.connect(self._upstream)
            except OSError:
                _hang_up(client)
                continue
            for source, target, heard in ((client, server, self._command), (server, client, self._answer)):
                thread = threading.Thread(target=self._pump, args=(source, target, heard))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, heard: Callable[[dict[str, Any]], None]) -> None:
        with suppress(OSError), source.makefile("rb") as lines:
            for line in lines:
                with self._lock:
                    heard(json.loads(line))
                target.sendall(line)
        _hang_up(target)

    def _command(self, message: dict[str, Any]) -> None:
        self._asked[message["id"]] = message["execute"]
        self._log.append(Said("command", message["execute"], message.get("arguments", {})))

    def _answer(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._log.append(Said("event", message["event"], message.get("data", {})))
        elif "return" in message and self._asked[message["id"]] == "query-block-jobs":
            self._log.append(Said("jobs", "query-block-jobs", {job["device"]: job for job in message["return"]}))
        elif "return" in message and self._asked[message["id"]] == "query-status":
            self._log.append(Said("state", "query-status", message["return"]))
        elif "error" in message and "id" in message:
            self._log.append(Said("refusal", self._asked[message["id"]], message["error"]))


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it has done so itself
        connection.shutdown(socket.SHUT_RDWR)


OURS = "everywhen-"
SINK, NOTHING = "everywhen-sink-", "everywhen-nothing-"
_ASKING = {"qmp_capabilities", "qom-get", "qom-list", "x-debug-query-block-graph"}
_ACTING = {
    *("blockdev-add", "blockdev-mirror", "blockdev-del", "block-job-cancel", "yank", "transaction"),
    *("block-job-pause", "block-job-resume", "blockdev-reopen", "stop", "cont"),
    *("nbd-server-start", "nbd-server-stop", "block-export-add", "block-export-del"),
}
_ACTIONS = {"block-dirty-bitmap-add", "block-dirty-bitmap-merge", "block-dirty-bitmap-remove"}
_ENDS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


@dataclass
class Rules:
    """What the record was found to break. `iothreads`: nodes of disks that an iothread serves."""

    iothreads: frozenset[str] = frozenset()

    def broken(self, log: Iterable[Said]) -> list[str]:
        """One line for each message that must not be there."""
        self._found: list[str] = []
        self._running: set[str] = set()
        self._stays: set[str] = set()
        self._pushes: set[str] = set()
        self._paused: set[str] = set()
        self._below: dict[str, str] = {}
        self._drained = self._at_rest = self._stopped = False
        self._servers = 0
        for message in log:
            if message.kind == "event" and message.name in _ENDS:
                self._running.discard(str(message.data.get("device")))
            elif message.kind == "jobs":
                self._running &= set(message.data)  # one may have ended while nobody listened
            elif message.kind == "state":
                self._at_rest = message.data["status"] != "running"
            elif message.kind == "refusal":
                self._refused(message)
            elif message.kind == "command":
                self._command(message)
        self._must(not self._stopped, "whom we stopped goes on", Said("end", "", {}))
        return self._found

    def _must(self, holds: bool, rule: str, message: Said) -> None:
        if not holds:
            self._found.append(f"{rule}: {message.name} {json.dumps(message.data)}")

    def _refused(self, message: Said) -> None:
        """What a refused command would have begun has not begun. (The one before it: one is under way at a time.)"""
        if message.name == "blockdev-mirror":
            self._running.discard(self._mirrored)
        elif message.name == "nbd-server-start":
            self._servers -= 1
        elif message.name == "stop":
            self._stopped = self._at_rest = False
        elif message.name == "blockdev-reopen":
            self._drained = False

    def _command(self, message: Said) -> None:
        name, data = message.name, message.data
        self._must(name.startswith("query-") or name in _ASKING | _ACTING, "K2: only what capture needs", message)
        check = getattr(self, "_" + name.replace("-", "_"), None)
        if check is not None:
            check(message, data)

    def _blockdev_add(self, message: Said, data: dict[str, Any]) -> None:
        self._must(data["node-name"].startswith(OURS), "our names", message)
        if data["driver"] == "null-co":
            return  # a stand-in; K3: a node on a disk with an iothread would be refused below
        if data["driver"] == "raw":
            self._must(data["file"].startswith(SINK), "K3: only on a connection to a sink", message)
            self._below[data["node-name"]] = data["file"]
            return
        if data["driver"] == "vpc":  # an empty image, for which QEMU refuses to migrate during a push
            self._must(data["read-only"] is True and data["file"]["read-only"] is True, "nothing is written to it", message)
            self._stays.add(data["node-name"])
            return
        self._must(data["driver"] == "nbd", "K2, K3: no node but a tap's target or a stand-in", message)
        self._must(1 <= data.get("open-timeout", 0) <= 2, "F3: open-timeout is set", message)
        self._must(data.get("reconnect-delay") == 0, "a killed sink does not stall", message)

    def _blockdev_mirror(self, message: Said, data: dict[str, Any]) -> None:
        self._mirrored = data["job-id"]
        self._running.add(self._mirrored)
        self._paused.discard(self._mirrored)
        if data["sync"] != "none":
            self._pushes.add(self._mirrored)
        else:
            below = self._below.get(data["target"], "")
            self._must(below.startswith(NOTHING), "K5: until it is paused no write of it can fail", message)
        self._must(data["sync"] == "none" or bool(self._stays), "K4: not migrated during a push", message)
        at_error = "report" if data["sync"] == "none" else "stop"
        how = (data["copy-mode"], data["on-target-error"], data["on-source-error"], data["job-id"] == data["target"])
        self._must(how == ("write-blocking", at_error, "stop", True), "every write; K5: no push ends by itself", message)
        self._must(data["job-id"].startswith(OURS) and data["filter-node-name"].startswith(OURS), "our names", message)

    def _block_job_pause(self, message: Said, data: dict[str, Any]) -> None:
        self._must(data["device"].startswith(OURS), "only our jobs", message)
        self._paused.add(data["device"])

    def _block_job_resume(self, message: Said, data: dict[str, Any]) -> None:
        job = data["device"]
        self._must(job.startswith(OURS), "only our jobs", message)
        self._must(job in self._pushes or self._drained, "K5: it may end now, with no write under way", message)

    def _yank(self, message: Said, data: dict[str, Any]) -> None:
        names = {instance["node-name"] for instance in data["instances"]}
        self._must(all(name.startswith(OURS) for name in names), "our names", message)

    def _block_job_cancel(self, message: Said, data: dict[str, Any]) -> None:
        self._must(data["device"].startswith(OURS), "only our jobs", message)
        if data.get("force"):
            self._must(self._at_rest, "K5: no job is ended with writes under way", message)
            return
        self._must(data["device"] in self._paused | self._pushes, "K5: until now it could not end by itself", message)
        self._must(self._drained, "K5: where a write has failed others may be under way", message)
        self._drained = False

    def _blockdev_reopen(self, message: Said, data: dict[str, Any]) -> None:
        """It drains."""
        [option] = data["options"]
        node, below = option["node-name"], option["file"]
        self._must(option["driver"] == "raw" and node.startswith(OURS) and below.startswith(OURS), "only a tap's node", message)
        self._below[node] = below
        self._drained = below.startswith(NOTHING)
        self._must(self._drained or node in self._paused, "K5: it cannot end by itself when writes can fail", message)

    def _stop(self, message: Said, data: dict[str, Any]) -> None:
        self._stopped = self._at_rest = True

    def _cont(self, message: Said, data: dict[str, Any]) -> None:
        self._must(self._stopped, "only who was stopped by us goes on", message)
        self._stopped = self._at_rest = False

    def _blockdev_del(self, message: Said, data: dict[str, Any]) -> None:
        self._must(data["node-name"].startswith(OURS), "only our nodes", message)
        self._must(data["node-name"] not in self._running, "F4: only when its job has ended", message)
        self._stays.discard(data["node-name"])

    def _block_export_add(self, message: Said, data: dict[str, Any]) -> None:
        self._must(data["node-name"] not in self.iothreads, "K1: never of a disk with an iothread", message)
        # vhost-user: QEMU 7.2 stands still for ever when it ends while a client is connected.
        self._must(data["type"] == "nbd" and data.get("writable") is False, "only to be read", message)
        self._must(data["id"].startswith(OURS), "our names", message)

    def _block_export_del(self, message: Said, data: dict[str, Any]) -> None:
        self._must(data["id"].startswith(OURS), "only our exports", message)

    def _nbd_server_start(self, message: Said, data: dict[str, Any]) -> None:
        self._servers += 1

    def _nbd_server_stop(self, message: Said, data: dict[str, Any]) -> None:
        self._must(self._servers > 0, "only our server is stopped", message)
        self._servers = max(0, self._servers - 1)

    def _transaction(self, message: Said, data: dict[str, Any]) -> None:
        for action in data["actions"]:
            inner = action["data"]
            self._must(action["type"] in _ACTIONS, "only bitmaps are changed together", message)
            name = inner.get("name") or inner.get("target", "")
            self._must(name.startswith(OURS), "only our bitmaps", message)
