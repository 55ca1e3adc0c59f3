# SPDX-License-Identifier: AGPL-3.0-or-later
"""`mark`, `pause`, `resume` and `unprotect` on a capture that runs: what becomes of the VM, the capture and the moments."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.interfaces.control_socket import NAME
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.program import Program, await_, ended

MIB = 1 << 20
SIZES = [2 * MIB, MIB]


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, SIZES) as running:
        running.write(0, 0, MIB, 1)
        yield running


@pytest.fixture
def capture(program: Program, hypervisor: Hypervisor) -> Iterator[Capture]:
    with Capture(program, "web1", hypervisor.qmp, "--pace", "0", "--seal-every", "1h").followed() as running:
        yield running


def taps(hypervisor: Hypervisor) -> set[str]:
    return {name for name in hypervisor.ours() if "tap" in name}


def bitmaps(hypervisor: Hypervisor) -> set[str]:
    return {name for name in hypervisor.ours() if name.startswith("everywhen-p-")}


def restored(program: Program, moment: str) -> bytes:
    path = program.folder / "back.raw"
    program.restore(moment, path, "--overwrite")
    return path.read_bytes()


def test_a_mark_is_a_moment(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    hypervisor.write(0, 0, 4096, 2)
    made = program.ok("mark", "web1", " before update ")
    hypervisor.write(0, 0, 4096, 3)
    assert made == {**made, "vm": "web1", "mark": "before update"}
    assert program.ok("points", "web1")[0]["id"] == made["point"]
    assert restored(program, 'web1/vd0@"before update"')[:4096] == bytes([2]) * 4096
    # Nothing was written since: a mark is made all the same.
    again = program.run("mark", "web1", "twice")
    assert (again.code, "restore 'web1@\"twice\"'" in again.out) == (0, True), again
    for text in ("", 'a"b', "a\nb", "x" * 201):
        assert program.run("mark", "web1", text).code == 2
    capture.stop()


def test_a_pause_and_its_end(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    assert len(taps(hypervisor)) == 2
    hypervisor.write(0, 4096, 4096, 7)
    done = program.run("pause", "web1", "--for", "1h")
    assert (done.code, "everywhen resume web1" in done.out) == (0, True), done
    assert taps(hypervisor) == set(), "they are off when it returns"
    assert len(bitmaps(hypervisor)) == 2
    assert restored(program, "web1/vd0")[4096:8192] == bytes([7]) * 4096, "all that was written before is kept"
    hypervisor.write(0, 0, 4096, 8)
    refused = program.run("mark", "web1", "now")
    assert (refused.code, "paused" in refused.err) == (1, True), refused
    assert program.ok("resume", "web1") == {"vm": "web1", "resumed": True}
    capture.followed()
    assert len(taps(hypervisor)) == 2
    assert program.ok("resume", "web1")["resumed"] is False
    newest = program.ok("points", "web1")[0]
    assert newest["disks"]["vd0"]["bytes_read"] == 65536, "only what changed is read"
    capture.stop()
    assert restored(program, "web1/vd0") == hypervisor.content(0)


def test_a_pause_ends_by_itself(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    program.ok("pause", "web1", "--for", "1s")
    assert taps(hypervisor) == set()
    capture.followed()
    assert len(taps(hypervisor)) == 2
    for text in ("0s", "8d", "soon"):
        assert program.run("pause", "web1", "--for", text).code == 2


def test_a_command_in_a_pause(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    script = "test $(ls host/web1/sockets/sink.sock 2>/dev/null | wc -l) = 0 && echo ran && exit 7"
    done = program.run("pause", "web1", "--", "sh", "-c", script)
    assert (done.code, done.out) == (7, "ran\n"), done
    capture.followed()
    assert len(taps(hypervisor)) == 2
    done = program.run("pause", "web1", "--json", "--", "sh", "-c", "echo ran; kill -9 $$")
    assert (done.code, done.document["exit"]) == (128 + 9, 128 + 9), done
    done = program.run("pause", "web1", "--", "no-such-command")
    assert (done.code, "was not paused" in done.err) == (6, True), done
    late = program.run("pause", "web1", "--for", "1s", "--", "sleep", "2")
    assert (late.code, "a longer --for" in late.err) == (0, True), late
    capture.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_in_a_pause_is_ended(
    program: Program, hypervisor: Hypervisor, capture: Capture, number: signal.Signals
) -> None:
    begun = program.folder / "begun"
    process = program.start(
        "pause", "web1", "--", "sh", "-c", f"trap 'exit 3' TERM; touch {begun}; while :; do sleep 0.05; done"
    )
    await_(process, begun.exists)
    assert taps(hypervisor) == set()
    if number == signal.SIGINT:
        # A terminal sends it to the command too; this one ends by itself.
        process.send_signal(number)
        time.sleep(0.2)  # it may not end before the command does
        assert process.poll() is None
        (shell,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(shell), signal.SIGTERM)
    else:
        process.send_signal(number)
    done = ended(process)
    assert (done.code, "begins again" in done.err) == (130, True), done
    capture.followed()
    assert len(taps(hypervisor)) == 2


def test_nothing_is_left_of_what_is_not_wanted_any_more(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    hypervisor.write(0, 0, 4096, 9)
    assert program.ok("unprotect", "web1") == {"vm": "web1", "bitmaps_taken_off": 2}
    assert hypervisor.ours() == set()
    assert capture.process.wait(20) == 0
    assert restored(program, "web1/vd0") == hypervisor.content(0)
    again = program.run("unprotect", "web1")
    assert (again.code, "--qmp SOCKET" in again.err) == (6, True), again


def test_what_a_killed_capture_left(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    running = program.run("unprotect", "web1", "--qmp", hypervisor.qmp)
    assert (running.code, len(taps(hypervisor))) == (4, 2), running
    hypervisor.write(0, 0, 4096, 9)
    last, written_ns = hypervisor.content(0), time.time_ns()
    eventually(lambda: capture.ask({"wish": "status"})["covered_ns"] > written_ns, "it is durable")
    capture.kill()
    assert program.run("status", "--check").code == 5
    assert len(bitmaps(hypervisor)) == 2
    cleared = program.run("unprotect", "web1", "--qmp", hypervisor.qmp, "--json")
    assert (cleared.code, cleared.document["bitmaps_taken_off"]) == (0, 2), cleared
    folder = program.folder / "host" / "web1"
    assert f"not in the repository, but in {folder}/spool. It is brought in by everywhen spool import {folder};" in cleared.err
    program.ok("spool", "import", folder)
    assert restored(program, "web1/vd0") == last
    assert hypervisor.ours() == set()
    assert hypervisor.write_errors(0) == 0
    assert program.run("status", "--check").code == 0, "it is not wanted any more"


def test_the_repository_is_away(program: Program, capture: Capture) -> None:
    """How capture stands can be seen all the same, and that it goes on."""
    away = program.repo.rename(program.folder / "away")
    for command in (["status"], ["timeline", "web1"]):
        done = program.run(*command)
        assert (done.code, "Captures on this host: web1 (every write" in done.err) == (6, True), done
    done = program.run("mark", "web1", "x")
    assert (done.code, "No mark was made." in done.err, "?." in done.err) == (1, True, False), done
    assert "web1 (every write; no recovery point: " in program.run("status").err
    away.rename(program.repo)
    assert program.ok("mark", "web1", "y")["mark"] == "y"
    assert "capture was lost" not in capture.said


def test_nobody_there(program: Program, capture: Capture) -> None:
    for command in (["mark", "wbe1", "x"], ["pause", "wbe1"], ["resume", "wbe1"], ["unprotect", "wbe1"]):
        done = program.run(*command)
        assert (done.code, "Close: web1" in done.err) == (6, True), done
    assert program.run("mark", "../web1", "x").code == 2
    capture.kill()
    assert program.run("resume", "web1").code == 6


def test_a_capture_that_hangs_is_told_from_none(program: Program, capture: Capture) -> None:
    capture.process.send_signal(signal.SIGSTOP)
    done = program.run("unprotect", "web1", "--qmp", "/nowhere")
    capture.process.send_signal(signal.SIGCONT)
    assert done.code == 4, done


@pytest.mark.parametrize(("answer", "then"), [(b"", "resume"), (b'{"error": "it stands aside"}\n', "status")])
def test_a_pause_that_nobody_answers_is_taken_back(program: Program, answer: bytes, then: str) -> None:
    """It may be heard of later than anybody waits for it. One that was refused is no pause: nothing is to be resumed."""
    folder, asked = program.folder / "host" / "web1", list[str]()
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / NAME))
        listening.listen()

        def serve() -> None:
            for said in (answer, b'{"resumed": true, "state": "displaced", "since_ns": 0}\n'):
                connection, _ = listening.accept()
                with connection:
                    asked.append(json.loads(connection.recv(4096))["wish"])
                    connection.sendall(said)

        serving = threading.Thread(target=serve)
        serving.start()
        done = program.run("pause", "web1", "--", "touch", program.folder / "ran")
        serving.join(20)
    assert (done.code, asked, (program.folder / "ran").exists()) == (1, ["pause", then], False), done


@in_soak
def test_a_first_copy_can_be_paused_and_not_marked(program: Program, tmp_path: Path) -> None:
    with (
        Hypervisor(tmp_path, [64 * MIB]) as hypervisor,
        Capture(program, "web1", hypervisor.qmp, "--pace", "4M") as capture,
    ):
        hypervisor.write(0, 0, 64 * MIB, 1)
        eventually(lambda: capture.state() == "copying", "the copy goes on")
        refused = program.run("mark", "web1", "now")
        assert (refused.code, "is being read just now" in refused.err) == (1, True), refused
        program.ok("pause", "web1", "--for", "1h")
        (bitmap,) = hypervisor.ours()
        assert bitmap.startswith("everywhen-p-"), "by which it goes on"
        program.ok("resume", "web1")
        eventually(lambda: capture.state() == "copying", "it goes on")
