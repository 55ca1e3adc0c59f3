# SPDX-License-Identifier: AGPL-3.0-or-later
"""A hypervisor's answers as values: what is asked of the graph of nodes, and how a wrong answer is told."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from everywhen.capture import answers
from everywhen.capture.answers import Graph
from everywhen.capture.qmp import MonitorError, QmpMonitor

ROOT, FORMAT, FILE, BASE, BASE_FILE, TARGET, JOB, OTHER = range(8)
GRAPH = Graph(
    nodes={"filter": ROOT, "qcow2": FORMAT, "file": FILE, "base": BASE, "base-file": BASE_FILE, "target": TARGET},
    jobs={"job": JOB, "other": OTHER},
    edges=(
        (ROOT, FORMAT, "backing"),
        (FORMAT, BASE, "backing"),
        (FORMAT, FILE, "file"),
        (BASE, BASE_FILE, "file"),
        (ROOT, TARGET, "target"),
        (JOB, BASE, "intermediate node"),
        (OTHER, TARGET, "source"),
    ),
)


def test_a_chain_follows_the_content() -> None:
    assert GRAPH.chain("filter") == ["filter", "qcow2", "file"]
    assert GRAPH.chain("base-file") == ["base-file"]
    assert GRAPH.chain("unknown") == ["unknown"]


def test_a_job_on_a_backing_file_is_on_the_disk() -> None:
    assert GRAPH.jobs_on("filter") == ["job"]
    assert GRAPH.jobs_on("target") == ["other"]
    assert GRAPH.jobs_on("file") == GRAPH.jobs_on("unknown") == []


def test_a_circle_is_no_chain() -> None:
    circle = Graph({"a": 1, "b": 2}, {}, ((1, 2, "file"), (2, 1, "backing")))
    with pytest.raises(MonitorError, match="a has a circle"):
        circle.chain("a")
    assert circle.jobs_on("a") == []


class Answering(QmpMonitor):
    """A monitor that gives one answer to everything."""

    def __init__(self, answer: Any) -> None:
        super().__init__(_greeting(), 1)
        self._answer = answer

    def execute(self, name: str, arguments: Any = None, *, timeout: float | None = None) -> Any:
        return {} if name == "qmp_capabilities" else self._answer


def _greeting() -> socket.socket:
    mine, peer = socket.socketpair()
    with peer:
        peer.sendall(b'{"QMP": {}}\n')
    return mine


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "no list of objects"),
        ([3], "no list of objects"),
        ([{"drv": "raw", "image": {"virtual-size": 1}}], "'node-name'"),
        ([{"node-name": "n", "drv": "raw", "image": {"virtual-size": "1"}}], "'virtual-size'"),
        ([{"node-name": "n", "drv": "raw", "image": {"virtual-size": -1}}], "'virtual-size'"),
        ([{"node-name": "n", "drv": "raw", "image": []}], "'image'"),
        ([{"node-name": "n", "drv": "raw", "image": {"virtual-size": 1}, "dirty-bitmaps": [{"name": "b"}]}], "'recording'"),
    ],
)
def test_what_is_wrong_is_said(answer: Any, words: str) -> None:
    with (
        Answering(answer) as monitor,
        pytest.raises(MonitorError, match=f"query-named-block-nodes otherwise than QEMU does: .*{words}"),
    ):
        answers.block_nodes(monitor)


def test_bitmaps_that_cannot_be_trusted() -> None:
    sizes = {"granularity": 4096, "count": 8192}
    bitmaps = [
        {"recording": True} | sizes,
        {"name": "a", "recording": True, "inconsistent": True} | sizes,
        {"name": "b", "recording": False} | sizes,
        {"name": "c", "recording": True, "inconsistent": False} | sizes,
    ]
    answer = [{"node-name": "n", "drv": "qcow2", "image": {"virtual-size": 512}, "dirty-bitmaps": bitmaps}]
    with Answering(answer) as monitor:
        found = answers.block_nodes(monitor)["n"].bitmaps
    assert [(bitmap.name, bitmap.recording) for bitmap in found] == [("", True), ("a", False), ("b", False), ("c", True)]
    assert [bitmap.is_of_job for bitmap in found] == [True, False, False, False]
    assert {(bitmap.granularity, bitmap.count) for bitmap in found} == {(4096, 8192)}
