# SPDX-License-Identifier: AGPL-3.0-or-later
"""How far a command has come, on standard error (ux 4.1, 4.5).

| style | when | shows |
|---|---|---|
| bar | a terminal | one moving line, drawn anew at most ten times a second |
| lines | no terminal, `TERM=dumb` | a line when 10 s have passed or 5 % were added, but never two within a second |
| json | `--progress json` | one JSON object a line, at most one a second, and one at the end |
| none | `-q` | nothing |

JSON: `title`, `percent` (null while the total is unknown), `bytes_done`, `bytes_total`, `rate` (bytes per second),
`seconds_left`, `limited_by` (source disk, host processor, network, repository, your pace; '' where nobody knows), and `files`
where a job copies files. A job that counts things (packs, moments) has `title`, `step`, `done` and `total` instead.

The rate is that of the last 15 s: long enough to be calm, short enough that a stalled network shows. A job that reports
from several threads needs no lock of its own. The end is always shown, also of a job that failed.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Literal, Protocol, TypeAlias

from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from everywhen.interfaces.cli.output import Output
from everywhen.services.ages import SECOND, span
from everywhen.services.escape import visible
from everywhen.services.sizes import size

Style: TypeAlias = Literal["auto", "json"]
Clock: TypeAlias = Callable[[], float]
"""Seconds that never run backwards (time.monotonic)."""

_WINDOW = 15.0
_RATE_AFTER = 0.5
_REDRAW = 0.1
_BAR, _SHORTEST_BAR = 24, 4
"""Columns. What the words need, they get first."""
_LINE_SECONDS = 10.0
_LINE_SHARE = 0.05
_LINE_GAP = 1.0


class Meter:
    """Where one job stands: bytes done, of how many (None: not known yet), how fast, and what holds it up."""

    def __init__(self, title: str, clock: Clock) -> None:
        self.title = title
        self.done = 0
        self.total: int | None = None
        self.limited_by = ""
        self.files: int | None = None
        self.step = ""
        """What is being done now, where the job counts things and not bytes."""
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def set(self, done: int, total: int | None, limited_by: str, files: int | None = None) -> None:
        """Take the newest figures; `done` counts all bytes so far."""
        self.done, self.total, self.limited_by, self.files = done, total, limited_by, files
        now = self._clock()
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW:
            self._samples.popleft()

    @property
    def percent(self) -> float | None:
        """0 to 100, or None while the total is unknown; an empty job is done."""
        if self.total is None:
            return None
        return min(100.0, 100.0 * self.done / self.total) if self.total else 100.0

    @property
    def rate(self) -> float:
        """Bytes per second over the last seconds; 0 while it is too early to say."""
        (start, first), (end, last) = self._samples[0], (self._clock(), self.done)
        return max(0.0, (last - first) / (end - start)) if end - start >= _RATE_AFTER else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at this rate; None when nobody can know."""
        if self.total is None or not self.rate:
            return None
        return max(0, self.total - self.done) / self.rate

    def words(self) -> str:
        """`52.1 GB of 100 GB  103 MB/s  7 min 4 s left  (network)`, or `deleting 3 of 12`."""
        if self.step:
            return self.step if not self.total else f"{self.step} {self.done:,} of {self.total:,}"
        parts = [size(self.done) if self.total is None else f"{size(self.done)} of {size(self.total)}"]
        if self.files is not None:
            parts.insert(0, f"{self.files:,} file{'s' * (self.files != 1)}")
        if self.rate:
            parts.append(f"{size(round(self.rate))}/s")
        if self.seconds_left:
            parts.append(f"{span(round(self.seconds_left * SECOND))} left")
        if self.limited_by:
            parts.append(f"(limited by: {self.limited_by})")
        return "  ".join(parts)

    def document(self) -> dict[str, object]:
        """The figures of `--progress json`."""
        percent, left = self.percent, self.seconds_left
        if self.step:
            return {"title": self.title, "step": self.step, "done": self.done, "total": self.total}
        files = {} if self.files is None else {"files": self.files}
        return {
            **files,
            "title": self.title,
            "percent": None if percent is None else round(percent, 1),
            "bytes_done": self.done,
            "bytes_total": self.total,
            "rate": round(self.rate),
            "seconds_left": None if left is None else round(left),
            "limited_by": self.limited_by,
        }


class _Display(Protocol):
    def show(self, meter: Meter) -> None:
        """Called after each report; decides itself whether it is time to show something."""

    def close(self, meter: Meter) -> None:
        """Called once, when the job has ended, well or not."""


class _Lines:
    def __init__(self, write: Callable[[str], None], clock: Clock) -> None:
        self._write = write
        self._clock = clock
        self._last = clock()
        self._shown_percent = 0.0

    def show(self, meter: Meter) -> None:
        passed = self._clock() - self._last
        gained = (meter.percent or 0.0) - self._shown_percent
        if passed >= _LINE_SECONDS or (passed >= _LINE_GAP and gained >= 100 * _LINE_SHARE):
            self.close(meter)

    def close(self, meter: Meter) -> None:
        self._last, self._shown_percent = self._clock(), meter.percent or 0.0
        percent = "" if meter.percent is None else f"{int(meter.percent)} %  "
        self._write(f"{meter.title}  {percent}{meter.words()}")


class _JsonLines:
    def __init__(self, write: Callable[[str], None], clock: Clock) -> None:
        self._write = write
        self._clock = clock
        self._last = clock()

    def show(self, meter: Meter) -> None:
        if self._clock() - self._last >= _LINE_GAP:
            self.close(meter)

    def close(self, meter: Meter) -> None:
        self._last = self._clock()
        self._write(json.dumps(meter.document()))


class _Bar:
    def __init__(self, output: Output, clock: Clock) -> None:
        self._live = Live(console=output.err, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._output = output
        self._clock = clock
        self._last: float | None = None

    def show(self, meter: Meter) -> None:
        if self._last is None:
            self._live.start()
            self._output.before_a_line = lambda: self._live.update(Text(""), refresh=True)
        elif self._clock() - self._last < _REDRAW:
            return
        self._draw(meter)

    def close(self, meter: Meter) -> None:
        self._output.before_a_line = lambda: None
        self._draw(meter)
        self._live.stop()

    def _draw(self, meter: Meter) -> None:
        self._last = self._clock()
        cells: list[RenderableType] = [Text(visible(meter.title)), Text(visible(meter.words()))]
        if meter.percent is not None:
            percent = Text(f"{int(meter.percent)} %")
            room = self._output.err.width - sum(cell.cell_len + 1 for cell in (*cells, percent) if isinstance(cell, Text)) - 1
            bar = ProgressBar(total=100, completed=meter.percent, width=min(_BAR, room))
            cells[1:1] = [bar, percent] if room >= _SHORTEST_BAR else [percent]
        line = Table.grid(padding=(0, 1))
        for _ in cells:
            line.add_column(no_wrap=True)  # several lines could not be drawn over where the terminal is at its end
        line.add_row(*cells)
        self._live.update(line, refresh=True)


class Progress:
    """One job's reports; made by `progress`."""

    def __init__(self, meter: Meter, display: _Display | None) -> None:
        self._meter = meter
        self._display = display
        self._reported = False
        self._lock = Lock()

    @property
    def is_shown(self) -> bool:
        """Whether anybody sees it."""
        return self._display is not None

    def report(self, done: int, total: int | None, limited_by: str = "", *, files: int | None = None) -> None:
        """`done` of `total` bytes, all counted from the start; may be called often, and from any thread."""
        with self._lock:
            self._reported = True
            self._meter.set(done, total, limited_by, files)
            if self._display:
                self._display.show(self._meter)

    def step(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` things of a job whose steps have names."""
        with self._lock:
            self._reported = True
            self._meter.step = what
            self._meter.done, self._meter.total = done, total
            if self._display:
                self._display.show(self._meter)

    def close(self) -> None:
        """Show the last figures; a job that never reported shows nothing."""
        with self._lock:
            if self._display and self._reported:
                self._display.close(self._meter)


@contextmanager
def progress(output: Output, title: str, *, clock: Clock, style: Style = "auto") -> Iterator[Progress]:
    """Show a job's progress until the block ends; `--progress json` is shown even with `-q`, since it was asked for."""
    display: _Display | None = None
    if style == "json":
        display = _JsonLines(output.machine_line, clock)
    elif output.moving and not output.quiet:
        display = _Bar(output, clock)
    elif not output.quiet:
        display = _Lines(output.note, clock)
    job = Progress(Meter(title, clock), display)
    try:
        yield job
    finally:
        job.close()
