# SPDX-License-Identifier: AGPL-3.0-or-later
"""The rules that `tests/monitor_proxy.py` finds broken: each on a record that breaks it, and none on one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.monitor_proxy import Rules, Said

TAP = "everywhen-tap-0"
ADD = {"driver": "nbd", "node-name": TAP, "open-timeout": 2, "reconnect-delay": 0}
MIRROR = {
    "job-id": TAP,
    "target": TAP,
    "device": "node0",
    "sync": "none",
    "copy-mode": "write-blocking",
    "on-target-error": "report",
    "on-source-error": "stop",
    "filter-node-name": "everywhen-filter-0",
}
EXPORT = {"type": "nbd", "id": "everywhen-export", "node-name": "node0", "writable": False}
YANK = {"instances": [{"type": "block-node", "node-name": TAP}]}
JOB = {"device": TAP}


def command(name: str, **data: Any) -> Said:
    return Said("command", name, data)


def bitmap(action: str, **data: Any) -> Said:
    return command("transaction", actions=[{"type": action, "data": data}])


ENDED = Said("event", "BLOCK_JOB_COMPLETED", {"device": TAP})
DRAIN = command("blockdev-reopen", options=[{"driver": "raw", "node-name": TAP, "file": "everywhen-nothing-0"}])
FORWARD = command("blockdev-reopen", options=[{"driver": "raw", "node-name": TAP, "file": "everywhen-sink-0"}])
ADDED = [command("blockdev-add", **ADD), DRAIN, command("blockdev-mirror", **MIRROR)]
ATTACHED = [*ADDED, command("block-job-pause", **JOB), FORWARD]
RESUME, CANCEL, FORCE = (
    command("block-job-resume", **JOB),
    command("block-job-cancel", **JOB),
    command("block-job-cancel", **JOB, force=True),
)
RUNNING = Said("state", "query-status", {"status": "running"})
STANDING = Said("state", "query-status", {"status": "paused"})
DELETED = command("blockdev-del", **{"node-name": TAP})


@pytest.mark.parametrize(
    "log",
    [
        [*ATTACHED, command("yank", **YANK), DRAIN, RESUME, CANCEL, ENDED, DELETED],
        [*ADDED, RUNNING, command("stop"), FORCE, command("cont")],
        [*ADDED, STANDING, FORCE],
        [*ATTACHED, Said("jobs", "query-block-jobs", {}), DELETED],
        [*ATTACHED, Said("refusal", "blockdev-mirror", {}), DELETED],
        [command("nbd-server-start"), command("block-export-add", **EXPORT), command("nbd-server-stop")],
        [command("query-block"), command("qom-get"), bitmap("block-dirty-bitmap-add", name="everywhen-p")],
    ],
)
def test_a_record_as_it_must_be(log: list[Said]) -> None:
    assert Rules(frozenset(["node1"])).broken(log) == []


@pytest.mark.parametrize(
    ("log", "rule"),
    [
        ([command("blockdev-add", **ADD | {"driver": "copy-before-write"})], "K2"),
        ([command("qom-set", path="/machine/x", property="drive", value="cbw")], "K2"),
        (
            [command("blockdev-reopen", options=[{"driver": "raw", "node-name": "node0", "file": "everywhen-nothing-0"}])],
            "only a tap's node",
        ),
        ([command("cont")], "stopped by us"),
        ([command("block-export-add", **EXPORT | {"node-name": "node1"})], "K1"),
        ([command("block-export-add", **EXPORT | {"writable": True})], "only to be read"),
        ([command("blockdev-add", driver="nbd", **{"node-name": TAP, "reconnect-delay": 0})], "F3"),
        ([command("blockdev-add", **ADD | {"open-timeout": 5})], "F3"),
        ([command("blockdev-add", **ADD | {"reconnect-delay": 10})], "stall"),
        ([*ATTACHED, DELETED], "F4"),
        ([*ATTACHED, ENDED, *ATTACHED, DELETED], "F4"),
        ([*ATTACHED, Said("jobs", "query-block-jobs", {TAP: {}}), DELETED], "F4"),
        ([*ATTACHED, CANCEL], "K5"),
        ([*ATTACHED, RESUME], "K5"),
        ([*ADDED, DRAIN, CANCEL], "K5"),
        ([*ADDED, FORWARD], "K5"),
        ([command("blockdev-mirror", **MIRROR)], "K5"),
        ([*ATTACHED, DRAIN, CANCEL, ENDED, *ATTACHED, CANCEL], "K5"),
        ([*ATTACHED, RUNNING, FORCE], "K5"),
        ([*ATTACHED, RUNNING, command("stop"), command("cont"), FORCE], "K5"),
        ([*ADDED, RUNNING, command("stop"), Said("refusal", "stop", {}), FORCE], "K5"),
        ([*ADDED, RUNNING, command("stop"), FORCE], "goes on"),
        ([DRAIN, command("blockdev-mirror", **MIRROR | {"on-target-error": "stop"})], "K5"),
        ([DRAIN, command("blockdev-mirror", **MIRROR | {"on-source-error": "report"})], "K5"),
        ([command("blockdev-add", driver="raw", **{"node-name": TAP, "file": "node0"})], "K3"),
        ([DRAIN, command("blockdev-mirror", **MIRROR | {"copy-mode": "background"})], "every write"),
        ([command("blockdev-mirror", **MIRROR | {"sync": "full", "on-target-error": "stop"})], "K4"),
        ([command("nbd-server-stop")], "only our server"),
        ([command("nbd-server-start"), Said("refusal", "nbd-server-start", {}), command("nbd-server-stop")], "only our server"),
        ([command("block-export-del", id="theirs")], "only our exports"),
        ([bitmap("block-dirty-bitmap-remove", name="theirs")], "only our bitmaps"),
        ([bitmap("blockdev-backup", name="everywhen-x")], "only bitmaps"),
    ],
)
def test_a_record_that_breaks_a_rule(log: list[Said], rule: str) -> None:
    broken = Rules(frozenset(["node1"])).broken(log)
    assert len(broken) == 1
    assert broken[0].startswith(rule) or rule in broken[0]
