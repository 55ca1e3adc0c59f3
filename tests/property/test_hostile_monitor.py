# SPDX-License-Identifier: AGPL-3.0-or-later
"""A monitor that answers otherwise than QEMU does: real answers with keys removed and types changed give typed errors only."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.capture import bitmaps, leftovers, tap
from everywhen.capture.nodes import DiskNode, NoDisks
from everywhen.capture.qmp import CommandFailed, Event, Monitor, MonitorError
from everywhen.capture.survey import survey
from everywhen.capture.tap import Tap, all_stand
from everywhen.formats.ids import PointId
from tests.hypervisor import Hypervisor
from tests.long_forms import SOAK

MIB = 1 << 20
MANY = settings(max_examples=20000 if SOAK else 300)
POINT = PointId("p-0123456789ab")
Recorded = dict[tuple[str, str], Any]


def asked(name: str, arguments: Any) -> tuple[str, str]:
    return name, json.dumps(arguments, sort_keys=True)


class Played:
    """A monitor that answers what was recorded."""

    def __init__(self, answers: Recorded) -> None:
        self._answers = answers
        self.sent: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        pass

    def execute(self, name: str, arguments: Any = None, *, timeout: float | None = None) -> Any:
        self.sent.append(name)
        answer = self._answers.get(asked(name, arguments), CommandFailed(name, "GenericError", "no such thing"))
        if isinstance(answer, CommandFailed):
            raise answer
        return answer

    def next_event(self, timeout: float, wanted: Callable[[Event], bool] = lambda _: True) -> Event | None:
        return None


class Recording(Played):
    """A real monitor's answers, the first to each question kept."""

    def __init__(self, monitor: Monitor) -> None:
        super().__init__({})
        self._monitor = monitor
        self.kept = self._answers

    def execute(self, name: str, arguments: Any = None, *, timeout: float | None = None) -> Any:
        try:
            answer = self._monitor.execute(name, arguments)
        except CommandFailed as error:
            self.kept.setdefault(asked(name, arguments), error)
            raise
        self.kept.setdefault(asked(name, arguments), answer)
        return answer


def use(monitor: Monitor) -> None:
    """All that reads answers."""
    for node in ("node0", "node1"):
        bitmaps.recordings(monitor, node)
    all_stand(monitor, [Tap(monitor, DiskNode("vd0", "node0", MIB, iothread=False), 0)])
    survey(monitor)
    leftovers.clear(monitor, answered=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """The answers of a QEMU with a qcow2 disk, one of an iothread, a CD-ROM drive, another's job, and leftovers of ours."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "iothread.raw").write_bytes(bytes(MIB))
    more = ["-device", "virtio-scsi-pci,id=scsi0,iothread=io0", "-device", "scsi-cd,id=cd0,bus=scsi0.0"]
    more += ["-blockdev", f"driver=file,node-name=node9,filename={folder}/iothread.raw"]
    more += ["-device", "scsi-hd,drive=node9,id=sd0,bus=scsi0.0"]
    with Hypervisor(folder, [MIB, MIB], image_format="qcow2", more=more) as running:
        execute = running.monitor.execute
        bitmaps.begin(running.monitor, {"node0": "vd0", "node1": "vd1"}, POINT)
        bitmaps.freeze(running.monitor, "node1", bitmaps.recordings(running.monitor, "node1")[0])
        for target in ("everywhen-sink-0", "theirs"):
            execute("blockdev-add", {"driver": "null-co", "node-name": target, "size": MIB})
        execute("blockdev-add", {"driver": "raw", "node-name": "everywhen-tap-0", "file": "everywhen-sink-0"})
        ours = {"job-id": "everywhen-tap-0", "device": "node0", "target": "everywhen-tap-0", "sync": "none"}
        execute("blockdev-mirror", {**ours, "filter-node-name": "everywhen-filter-0"})
        execute("blockdev-backup", {"job-id": "theirs", "device": "node9", "target": "theirs", "sync": "none"})
        execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(folder / "export")}}})
        execute("block-export-add", {"type": "nbd", "id": "everywhen-export", "node-name": "node1"})
        recording = Recording(running.monitor)
        use(recording)
        assert running.ours() == {f"everywhen-{POINT}-vd{number}" for number in range(2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tap, "_END_S", 0.0)  # what always answers the same has jobs that never end
        yield recording.kept


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a JSON value."""
    found = [path]
    if isinstance(value, dict):
        found += [place for key, inner in value.items() for place in places(inner, (*path, key))]
    elif isinstance(value, list):
        found += [place for number, inner in enumerate(value) for place in places(inner, (*path, number))]
    return found


OTHER: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1 << 70,
    "",
    "everywhen-",
    "everywhen-tap-0",
    "\ud800",
    [],
    [[]],
    [None],
    {},
    {"x": {}},
]


def changed(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """`value` with what is at `path` replaced, or removed for `REMOVE`."""
    if not path:
        return None if by is REMOVE else by
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if by is REMOVE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = by
    return value


REMOVE = object()


def test_the_recorded_answers_are_understood(recorded: Recorded) -> None:
    use(Played(recorded))


def test_a_survey_only_asks(recorded: Recorded) -> None:
    monitor = Played(recorded)
    survey(monitor)
    assert set(monitor.sent) <= {
        name for name in monitor.sent if name.startswith(("query-", "x-debug-query-", "qom-get", "qom-list"))
    }


def test_changed_answers(recorded: Recorded) -> None:
    queries = sorted(key for key, answer in recorded.items() if not isinstance(answer, CommandFailed))
    where = {key: places(recorded[key]) for key in queries}

    @MANY
    @given(st.data())
    def check(data: st.DataObject) -> None:
        answers = dict(recorded)
        for _ in range(data.draw(st.integers(1, 2))):
            key = data.draw(st.sampled_from(queries))
            place = data.draw(st.sampled_from(where[key]))
            # What the first change took away the second cannot change.
            with suppress(LookupError, TypeError):
                answers[key] = changed(answers[key], place, data.draw(st.sampled_from([REMOVE, *OTHER])))
        with suppress(MonitorError, CommandFailed, NoDisks):
            use(Played(answers))

    check()


def test_any_answer_at_all(recorded: Recorded) -> None:
    """Every place of every answer, once each: what is gone, and what is of another type."""
    for key, answer in recorded.items():
        if isinstance(answer, CommandFailed):
            continue
        for place in places(answer):
            for by in (REMOVE, [{}]):
                with suppress(MonitorError, CommandFailed, NoDisks):
                    use(Played({**recorded, key: changed(answer, place, by)}))
