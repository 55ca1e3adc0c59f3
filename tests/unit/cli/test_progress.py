# SPDX-License-Identifier: AGPL-3.0-or-later
"""Progress: when a line appears, and what it says. The clock is the test's."""

from __future__ import annotations

import io
import json

import pytest

from everywhen.interfaces.cli.output import Output
from everywhen.interfaces.cli.progress import Meter, Style, progress

GB = 10**9


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(
    steps: list[tuple[float, int]],
    *,
    total: int | None = 100 * GB,
    style: Style = "auto",
    quiet: bool = False,
    err: io.StringIO | None = None,
) -> str:
    """Report `steps` of (seconds later, bytes done) and give what standard error got."""
    clock, err = Clock(), err or io.StringIO()
    output = Output(io.StringIO(), err, {"TERM": "xterm", "COLUMNS": "120"}, quiet=quiet)
    with progress(output, "vda", clock=clock, style=style) as job:
        for seconds, done in steps:
            clock.now += seconds
            job.report(done, total, "network")
    return err.getvalue()


def test_a_line_every_ten_seconds() -> None:
    lines = run([(1, GB * n) for n in range(1, 22)], total=1000 * GB).splitlines()
    assert lines == [
        "vda  1 %  10.0 GB of 1.0 TB  1.0 GB/s  16 min 30 s left  (limited by: network)",
        "vda  2 %  20.0 GB of 1.0 TB  1.0 GB/s  16 min 20 s left  (limited by: network)",
        "vda  2 %  21.0 GB of 1.0 TB  1.0 GB/s  16 min 19 s left  (limited by: network)",
    ]


def test_a_line_every_five_per_cent_but_not_two_in_a_second() -> None:
    percents = [line.split()[1] for line in run([(1.0, 3 * GB * n) for n in range(1, 11)]).splitlines()]
    assert percents == ["6", "12", "18", "24", "30", "30"]
    assert len(run([(0.01, GB * n) for n in range(1, 101)]).splitlines()) == 2


def test_json_lines_are_documents_at_most_one_a_second() -> None:
    lines = run([(0.5, GB * n) for n in range(1, 5)], style="json", quiet=True).splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0]) == {
        "title": "vda",
        "percent": 2.0,
        "bytes_done": 2 * GB,
        "bytes_total": 100 * GB,
        "rate": 2 * GB,
        "seconds_left": 49,
        "limited_by": "network",
    }
    unknown = json.loads(run([(2, 5)], total=None, style="json").splitlines()[-1])
    assert (unknown["percent"], unknown["bytes_total"], unknown["seconds_left"]) == (None, None, None)


def test_quiet_and_jobs_that_never_report_show_nothing() -> None:
    assert run([(11, GB)], quiet=True) == ""
    assert run([]) == ""
    assert run([], err=Terminal()) == ""


def test_a_terminal_gets_one_moving_line() -> None:
    text = run([(0.01, GB * n) for n in range(1, 101)], err=Terminal())
    assert 5 <= text.count("network") <= 13  # one second, ten times redrawn, and the end
    assert "100 %" in text
    assert text.removesuffix("\x1b[?25h").endswith("\n")  # the cursor is shown again


@pytest.mark.parametrize("columns", [80, 40])
def test_a_narrow_terminal_gets_one_line(columns: int) -> None:
    clock, screen = Clock(), Terminal()
    output = Output(io.StringIO(), screen, {"TERM": "xterm", "COLUMNS": str(columns)})
    with progress(output, "cp web1", clock=clock) as job:
        for done in (1, 2, 3):
            clock.now += 2
            job.report(done * GB, 54 * GB, files=12_345)
    drawn = screen.getvalue().split("\r\x1b[2K")
    assert len(drawn) > 3
    assert not any("\n" in line for line in drawn[:-1])
    assert ("cp web1 " in drawn[-1]) == (columns == 80)
    assert ("12,345 files  3.0 GB of 54.0 GB  500 MB/s  1 min 42 s left" in drawn[-1]) == (columns == 80)


def test_without_a_total_there_is_no_bar() -> None:
    text = run([(1, GB)], total=None, err=Terminal())
    assert "1.0 GB" in text
    assert "\u2501" not in text
    assert "%" not in text


def test_lines_of_the_result_and_a_moving_one_do_not_mix() -> None:
    clock, screen = Clock(), Terminal()
    output = Output(screen, screen, {"TERM": "xterm", "COLUMNS": "120"})
    with progress(output, "find", clock=clock) as job:
        for done in (1, 2):
            clock.now += 1
            job.step("points", done, 9)
            output.line(f"hit {done}")
    shown = screen.getvalue()
    for done in (1, 2):
        before = shown[: shown.index(f"hit {done}\n")]
        assert before.endswith("\r\x1b[2K"), "the line was taken away, and the cursor is at its begin"
    assert shown.index("points 1 of 9") < shown.index("hit 1") < shown.index("points 2 of 9") < shown.index("hit 2")


def test_a_failed_job_still_shows_its_end() -> None:
    err = io.StringIO()
    output = Output(io.StringIO(), err, {})

    def fail() -> None:
        with progress(output, "vda", clock=Clock()) as job:
            job.report(GB, 2 * GB)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    assert err.getvalue() == "vda  50 %  1.0 GB of 2.0 GB\n"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    meter = Meter("vda", clock)
    for second in range(60):
        clock.now += 1
        meter.set((second + 1) * GB if second < 30 else 30 * GB, 100 * GB, "")
    assert meter.rate == 0
    assert meter.seconds_left is None
    assert meter.percent == 30


def test_an_empty_job_is_done() -> None:
    meter = Meter("vda", Clock())
    meter.set(0, 0, "")
    assert meter.percent == 100
    assert meter.words() == "0 B of 0 B"
