# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture costs, as `stats`, `status` and `timeline` say it, against what was written and what lies there for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.program import Program

KIB, MIB = 1 << 10, 1 << 20
HEADER = 192
"""Of each segment: no write's."""


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, [8 * MIB, MIB]) as running:
        running.write(0, 0, 4 * MIB, 1)
        yield running


def stored(program: Program, *folders: str) -> int:
    """Bytes of the files in these folders of the repository."""
    paths = [path for folder in folders for path in (program.repo / folder).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in paths)


def segments(program: Program) -> int:
    return len([path for path in (program.repo / "journals").rglob("*") if path.is_file()])


def amplified(program: Program, *names: str) -> Any:
    found = program.ok("stats", *names)
    (vm,) = found["vms"]
    assert found["write_amplification"] == vm["write_amplification"]
    return vm["write_amplification"]


def test_write_amplification_is_what_lies_there_for_what_was_written(program: Program, hypervisor: Hypervisor) -> None:
    chance = random.Random(11)
    noise = program.folder / "noise"
    noise.write_bytes(chance.randbytes(MIB))
    with Capture(program, "web1", hypervisor.qmp, "--pace", "0", "--seal-every", "1h").followed() as capture:
        nothing = amplified(program)
        assert (nothing["written_bytes"], nothing["points"], nothing["journal_per_written"]) == (0, 0, None)
        before = stored(program, "packs", "twins/packs")
        for number in range(2):
            hypervisor.io(0, f"write -s {noise} {number * 512 * KIB} {MIB}")  # the second one over half of the first
            program.ok("mark", "web1", f"noise {number}")
        for number in range(20):
            hypervisor.write(1, 4 * KIB * (number % 4), 4 * KIB, number + 1)
        hypervisor.io(0, f"write -z {5 * MIB} {2 * MIB}")
        eventually(lambda: status(program)["spool_bytes_per_second"] > 0, "it has seen them")
        program.ok("mark", "web1", "the end")
        capture.ask({"wish": "ship"})
        between = stored(program, "packs", "twins/packs") - before
        capture.stop()
    found = amplified(program, "web1")
    assert found["written_bytes"] == 2 * MIB + 20 * 4 * KIB
    assert found["different_bytes"] == 2 * MIB + 4 * 4 * KIB, "each point's bytes once; zeroes never"
    assert found["sealed_bytes"] == pytest.approx(between, abs=4096), "the last one shows nothing that is new"
    journal = stored(program, "journals") - HEADER * segments(program)
    assert found["journal_bytes"] == pytest.approx(journal, abs=2500), "less the marks"
    noise_alone = 2 * MIB / found["written_bytes"]
    assert found["journal_per_written"] == pytest.approx(noise_alone, abs=0.02), "pages of one value cost nothing"
    assert 3 <= found["points"] <= 4
    shown = program.run("stats")
    assert ("CAPTURED" in shown.out, f"({found['journal_per_written']:.2f}×)" in shown.out) == (True, True), shown
    assert program.run("verify", "--read-data").code == 0
    assert program.run("gc").code == 0
    assert amplified(program, "web1") == found


def status(program: Program) -> Any:
    (found,) = program.ok("status", "web1")["vms"]
    return found["capture"]


WORDS = ("writes/s", "a write waits for us", "(99 of 100)", "/s to the spool", "% of a processor")


def test_what_it_costs_guest_and_host_is_said_and_kept(program: Program, hypervisor: Hypervisor) -> None:
    with Capture(program, "web1", hypervisor.qmp, "--pace", "0", "--seal-every", "1h").followed() as capture:

        def said() -> bool:
            """Again when it is not: a sink that gets no processor for 200 ms is taken away, and capture begins again."""
            for number in range(20):
                hypervisor.write(number % 2, 4096 * number, 4096, number + 1)
            told = status(program)
            latency, shares = told["added_latency_ns"], told["processor_share"]
            assert sorted(shares) == ["protect", "sink", "watchdog"]
            drawn = [program.run("status").out, *(line for line in timeline(program) if line.startswith("LOAD"))]
            return (
                told["writes_per_second"] > 0
                and 0 < latency["median"] <= latency["p99"]
                and all(0 < share < 8 for share in shares.values())
                and len(drawn) == 2
                and all(words in text for words in WORDS for text in drawn)
            )

        eventually(said, "it is said", 60)
        program.ok("mark", "web1", "kept")
        hypervisor.write(0, 0, 4096, 99)
        capture.stop()
    (vm,) = program.ok("stats", "web1")["vms"]
    day = vm["last_24_hours"]
    # Both are known to a third, the worst of a stretch exactly.
    assert 0 < day["added_latency_ns"]["median"] <= 1.34 * day["added_latency_ns"]["worst"]
    assert 0 < day["compressed_share"] < 0.1, "pages of one value"
    assert "a write waited for us" in program.run("stats", "web1").out


def timeline(program: Program) -> list[str]:
    return program.run("timeline", "web1").out.splitlines()


@in_soak
def test_it_is_said_while_disks_are_copied_too(program: Program, tmp_path: Path) -> None:
    with Hypervisor(tmp_path, [64 * MIB]) as hypervisor:
        hypervisor.write(0, 0, 64 * MIB, 1)
        # 4 MiB are read at once, and then it looks around.
        with Capture(program, "web1", hypervisor.qmp, "--pace", "6M") as capture:
            eventually(lambda: capture.state() == "copying", "it copies")

            def costs() -> bool:
                hypervisor.write(0, 0, 4096, 7)
                found = status(program)
                return bool(found["state"] == "copying" and found["writes_per_second"] and found["added_latency_ns"]["p99"])

            eventually(costs, "it is said what the guest's writes wait for")
            assert status(program)["processor_share"]["sink"] > 0
            shown = program.run("status").out
            assert "a write waits for us" in shown
            assert "are in the repository" not in shown
