# SPDX-License-Identifier: AGPL-3.0-or-later
"""`timeline` and `status` of a VM under capture: what they say can be opened can be, and what they call a gap cannot."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.program import PROGRAM, Program

MIB = 1 << 20


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, [2 * MIB, MIB]) as running:
        running.write(0, 0, MIB, 1)
        yield running


def captured(program: Program, hypervisor: Hypervisor) -> Capture:
    return Capture(program, "web1", hypervisor.qmp, "--pace", "0", "--seal-every", "1h").followed()


def seconds(text: str) -> float:
    """Since 1970, of a time as documents have it."""
    return datetime.fromisoformat(f"{text[:26].rstrip('Z')}Z").timestamp()


def opens(program: Program, at: float) -> int:
    """The exit code of opening the moment of exactly that time."""
    when = datetime.fromtimestamp(at).astimezone().isoformat(timespec="microseconds")
    return program.run("restore", f"web1/vd0@{when}", "--to", "back.raw", "--overwrite", "--exact").code


def set_back(program: Program, by_s: int) -> None:
    """The host's clock was set back since the last capture, as far as the next one can know."""
    kept = Path(program.environment["EVERYWHEN_STATE"]) / "web1" / "spool" / "clock.json"
    value = json.loads(kept.read_text())
    kept.write_text(json.dumps(value | {"offset_ns": value["offset_ns"] + by_s * 10**9}))


def writes(hypervisor: Hypervisor) -> None:
    for number in range(6):
        hypervisor.write(number % 2, 4096 * number, 512, 20 + number)
        time.sleep(0.05)  # so that they are of different times


def row(program: Program, *more: str) -> Any:
    (found,) = program.ok("status", "web1", *more)["vms"]
    return found


def test_coverage_and_gaps_are_what_can_be_opened_and_what_cannot(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor) as capture:
        assert program.ok("timeline", "web1")["gaps"] == []
        writes(hypervisor)
        paused_at = time.time()
        program.ok("pause", "web1", "--for", "1h")
        (goes_on,) = program.ok("timeline", "web1")["gaps"]
        assert (goes_on["to"], goes_on["why"]) == (None, "paused")
        program.ok("resume", "web1")
        capture.followed()
        writes(hypervisor)
        program.ok("mark", "web1", "a mark")
        writes(hypervisor)
        capture.kill()
    killed_at = time.time()
    hypervisor.write(0, 0, 512, 99)
    (goes_on,) = (gap for gap in program.ok("timeline", "web1")["gaps"] if gap["to"] is None)
    assert (goes_on["why"], seconds(goes_on["from"]) < killed_at) == ("capture was killed", True)
    seen = program.run("status", "--check")
    assert (seen.code, "KILLED" in seen.out, "its capture on this host was killed" in seen.out) == (5, True, True), seen
    set_back(program, 37)
    assert "in the spool that a capture left" in program.run("restore", "web1/vd0", "--to", "back.raw", "--overwrite").err
    with captured(program, hypervisor) as capture:
        writes(hypervisor)
        eventually(lambda: len(program.ok("timeline", "web1")["every_write"]) == 3, "the newest writes are durable")
        line = program.ok("timeline", "web1")
        shown = program.run("timeline", "web1").out
        capture.stop()
    (step,) = line["clock_steps"]
    assert (round(step["seconds"]), round(seconds(step["from"]) - seconds(step["to"]))) == (-37, 37)
    assert killed_at < seconds(step["at"]) < time.time()
    assert re.search(r"^CLOCK +[-0-9]+ [:0-9]+   the host's clock was set back by 37 s, from ", shown, re.MULTILINE), shown
    first, second = line["gaps"]
    assert (first["why"], second["why"]) == ("paused", "capture was not running")
    # The taps say themselves when they were closed; of a run that was killed the sink ends a little later.
    assert paused_at < seconds(first["from"]) < seconds(first["to"])
    assert killed_at - 3 < seconds(second["from"]) < seconds(second["to"])
    assert killed_at < seconds(second["to"])
    assert len(line["every_write"]) == 3
    assert [point["mark"] for point in line["points"]].count("a mark") == 1
    for stretch in line["every_write"][:2]:
        begin, end = seconds(stretch["from"]), seconds(stretch["to"])
        middle = [point["time"] for point in line["points"] if begin < seconds(point["time"]) <= end]
        assert middle, "it was written to"
        assert opens(program, begin + (seconds(middle[-1]) - begin) / 2) == 0
    for gap in (first, second):
        begin, end = seconds(gap["from"]), seconds(gap["to"])
        # To the microsecond, as `seconds` has it.
        assert [opens(program, at) for at in (begin - 2e-6, begin + 2e-6, (begin + end) / 2)] == [0, 6, 6], gap
    assert program.run("verify").code == 0
    # After the end, from the repository alone.
    later = program.ok("timeline", "web1")
    assert (later["gaps"], later["clock_steps"], later["capture"]) == (line["gaps"], line["clock_steps"], None)


def test_status_of_a_capture(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor) as capture:
        writes(hypervisor)
        # It looks at itself once a second.
        eventually(lambda: row(program)["capture"]["lag"]["sealed_writes"] >= 6, "it has seen them")
        eventually(lambda: row(program)["capture"]["lag"]["durable_writes"] == 0, "they are durable")
        found = row(program)
        told = found["capture"]
        assert (told["state"], told["lag"]["repository_writes"] > 0, told["spool_bytes"] > 0) == ("following", True, True)
        assert told["lag"]["captured_seconds"] == 0
        assert told["lag"]["durable_seconds"] < 5
        assert told["lag"]["sealed_seconds"] <= time.time() - seconds(found["newest"]["time"])
        assert told["lag"]["sealed_seconds"] >= told["lag"]["durable_seconds"], "the journal is newer than the points"
        (lag,) = [line for line in program.run("timeline", "web1").out.splitlines() if line.startswith("LAG")]
        shipped = r"in the repository all( but \d+ writes)?"
        assert re.fullmatch(rf"LAG +captured at once   durable .* s   {shipped}   sealed .* s, all but [1-9]\d* writes", lag)
        latency = told["added_latency_ns"]
        assert latency["worst"] >= latency["p99"] >= latency["median"] > 0
        assert seconds(found["newest_moment"]) > seconds(found["newest"]["time"]), "the journal is newer than the points"
        shown = program.run("status")
        assert "every write" in shown.out
        assert "writes are only on this host" in shown.out
        assert program.run("status", "--check").code == 0
        assert program.run("status", "web1", "--max-age", "10s", "--check").code == 0
        capture.ask({"wish": "ship"})
        eventually(lambda: row(program)["capture"]["lag"]["repository_writes"] == 0, "all of it is in the repository")
        program.ok("pause", "web1", "--for", "1h")
        assert "paused until" in program.run("status").out
        assert row(program)["capture"]["state"] == "paused"
        program.ok("resume", "web1")
        capture.followed()
        capture.process.send_signal(signal.SIGSTOP)
        silent = program.run("status", "--check")
        capture.process.send_signal(signal.SIGCONT)
        assert (silent.code, "its capture does not answer" in silent.out) == (5, True), silent
    killed = row(program)["capture"]
    assert (killed["state"], killed["lag"]["durable_seconds"]) == ("killed", None)


@in_soak
def test_a_capture_that_ended_with_an_error_is_not_one_that_nobody_wants(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor) as capture:
        capture.stop()
    assert (row(program)["capture"], program.run("status", "--check").code) == (None, 0), "it was ended in order"
    other = program.folder / "no socket"
    other.touch()
    for _ in range(2):
        assert program.run("protect", "web1", "--qmp", other).code == 1
    seen = program.run("status", "--check")
    assert (seen.code, "FAILED" in seen.out) == (5, True), seen
    why = f"web1 cannot be captured: {other} is no socket"
    assert f"({why}); begin it again: everywhen protect" in seen.out
    (gap,) = program.ok("timeline", "web1")["gaps"]
    assert (gap["to"], gap["why"]) == (None, f"capture ended: {why}")
    with captured(program, hypervisor) as capture:
        assert row(program)["capture"]["state"] == "following"
        capture.stop()
    assert row(program)["capture"] is None
    ways: list[tuple[list[str | Path], int]] = [([], 6), (["--qmp", hypervisor.qmp], 0)]
    for more, code in ways:
        assert program.run("protect", "web1", "--qmp", other).code == 1
        assert row(program)["capture"]["state"] == "failed"
        assert program.run("unprotect", "web1", *more).code == code
        assert row(program)["capture"] is None


def test_status_of_a_capture_that_is_lost_or_waits(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor) as capture, socket.socket(socket.AF_UNIX) as silent:
        hypervisor.kill()
        # Somebody is there, and does not answer: so it is not off, and stays lost.
        hypervisor.qmp.unlink()
        silent.bind(str(hypervisor.qmp))
        silent.listen()
        eventually(lambda: capture.state() == "detached", "it is lost")
        found = row(program)
        assert (found["capture"]["state"], found["capture"]["lag"]["durable_seconds"]) == ("detached", None)
        assert any("not captured for" in need and "begins again by itself" in need for need in found["needs"])
        checked = program.run("status", "--check")
        assert (checked.code, "DETACHED" in checked.out) == (5, True), checked
        drawn = program.run("timeline", "web1")
        assert (drawn.code, "- now" in drawn.out, "DETACHED" in drawn.out) == (0, True, True), drawn


def test_another_repository_hears_nothing_of_a_capture(program: Program, hypervisor: Hypervisor, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(MIB))
    other = Program(tmp_path, "other").init()
    other.backup("web1", f"vda={image}")
    with captured(program, hypervisor):
        assert row(program)["capture"]["state"] == "following"
        assert row(other)["capture"] is None
    assert (row(program)["capture"]["state"], row(other)["capture"]) == ("killed", None)


def test_the_picture(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor) as capture:
        writes(hypervisor)
        program.ok("mark", "web1", "before")
        program.ok("pause", "web1", "--for", "1h")
        program.ok("resume", "web1")
        capture.followed()
        capture.stop()
    drawn = program.run("timeline", "web1")
    assert drawn.code == 0, drawn
    lines = {line[:8].strip(): line[8:] for line in drawn.out.splitlines()}
    assert set(lines["writes"]) == {"█", "░"}
    assert "c" in lines["points"]
    assert lines["events"].strip() == "M"
    assert "paused" in lines["GAP"]
    assert '"before"' in lines["MARK"]
    plain = subprocess.run(
        [PROGRAM, "timeline", "web1"],
        env={**program.environment, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(next(line for line in plain.stdout.splitlines() if line.startswith("writes"))[8:]) == {"#", "x"}


def test_the_picture_fits_the_terminal(program: Program, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    for number in range(3):
        image.write_bytes(bytes([number]) * MIB)
        program.backup("web1", f"vda={image}")
        program.later_s += 4000
    ours, theirs = pty.openpty()
    environment = {**program.environment, "TERM": "xterm", "COLUMNS": "60", "LINES": "20"}
    subprocess.run([PROGRAM, "timeline", "web1"], env=environment, stdout=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:
        pass  # all of it was read
    os.close(ours)
    drawn = shown.decode().split("\r\n")
    assert max(len(line) for line in drawn[1:6]) <= 60, drawn
    assert any(line.startswith("changed") for line in drawn)


@in_soak
def test_a_part_of_the_time(program: Program, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    ids = []
    for number in range(3):
        image.write_bytes(bytes([number]) * MIB)
        ids.append(program.backup("web1", f"vda={image}")["point"])
        program.later_s += 7200

    def there(*more: str) -> list[str]:
        return [point["id"] for point in program.ok("timeline", "web1", *more)["points"]]

    assert there() == ids
    assert there("--from", ids[1]) == ids[1:]
    assert there("--to", ids[1]) == ids[:2]
    assert there("--from", ids[1], "--to", ids[1]) == [ids[1]]
    assert there("--from", "-5h") == ids[1:]
    assert there("--from", "2001-01-01", "--to", "2001-12-31") == []
    for wrong in (["--from", "latest~1"], ["--from", ids[2], "--to", ids[0]], ["--from", "whenever 7"]):
        assert program.run("timeline", "web1", *wrong).code in (2, 6)
    assert program.run("timeline", "web2").code == 6


@in_soak
def test_what_was_written_is_counted(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor) as capture:
        writes(hypervisor)
        program.ok("pause", "web1", "--for", "1h")
        hypervisor.write(0, 0, 512, 4)
        program.ok("resume", "web1")
        capture.followed()
        writes(hypervisor)
        capture.kill()
    with captured(program, hypervisor) as capture:  # takes in what the other one had in its spool
        capture.stop()
    (found,) = program.ok("stats", "web1")["vms"]
    told = found["last_24_hours"]
    assert 6 < told["writes"] <= 12, "what came in a pause was not seen"
    assert told["written_bytes"] == 512 * told["writes"]
    assert 2 <= told["blocks"] <= 12
    gaps = program.ok("timeline", "web1")["gaps"]
    assert told["gap_seconds"] == pytest.approx(sum(seconds(gap["to"]) - seconds(gap["from"]) for gap in gaps), abs=0.1)
    assert program.run("verify", "--read-data").code == 0
    assert program.run("gc").code == 0
    assert program.ok("stats", "web1")["vms"][0]["last_24_hours"] == told
