# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is said about a booted copy: beside its console, on standard error; with `--json` one document, when it is known whether
it is up."""

from __future__ import annotations

import time

from everywhen.interfaces.cli.context import Context
from everywhen.services.times import rfc3339
from everywhen.services.view.moments import MomentView

_HOW = {"kvm": "KVM", "tcg": "software emulation: KVM cannot be used here"}


class Told:
    """One copy. `began`: by the monotonic clock; `keep_in`: the folder of what it writes."""

    def __init__(self, context: Context, view: MomentView, began: float, keep_in: str | None) -> None:
        self.began = began
        self.decided = False
        """Whether it is known if it was up in time."""
        self.seen_by = ""
        """How it was seen to be up, '' while it was not."""
        self._context = context
        self._view = view
        self._keep_in = keep_in
        self._accelerator = ""
        self._on_console = False
        self._started_s = self._up_s = 0.0
        lost = "is forgotten" if keep_in is None else f"is in {keep_in} as far as the guest had it written out"
        context.output.kept = f"The backup is as it was; what the copy wrote {lost}."

    def opened(self) -> None:
        """Which moment it is."""
        self._context.output.note(self._view.moment.found.words(self._view.vm.name, self._context.zone))
        if not self._view.leased:
            self._context.output.warn("the repository cannot be written: nothing there says that this moment is being read")

    def plan(self, remarks: list[str]) -> None:
        """How the machine differs from the one that was backed up."""
        for remark in remarks:
            self._context.output.note(remark)

    def started(self, accelerator: str, *, on_console: bool) -> None:
        """QEMU runs, and has opened its disks; `on_console`: its guest writes to the same terminal."""
        self._accelerator = accelerator
        self._on_console = on_console
        self._started_s = time.monotonic() - self.began
        where = "are forgotten in the end" if self._keep_in is None else f"are kept in {self._keep_in}"
        self._context.output.note(
            f"QEMU started after {self._started_s:.1f} s ({_HOW[accelerator]}); the copy's writes {where}"
        )
        self._context.output.note("Ctrl-] ends it." if on_console else "Ctrl-C ends it.")

    def not_by_kvm(self) -> None:
        """QEMU is started again."""
        self._context.output.warn("KVM of this host could not go on with this guest; started anew without it")

    def up(self, seen_by: str) -> None:
        """It was seen to be up; only the first sign counts."""
        if self.seen_by:
            return
        self.seen_by = seen_by
        self._up_s = time.monotonic() - self.began
        if self._on_console:
            self._context.output.note("")  # not in the middle of the guest's prompt
        self._context.output.note(f"guest up after {self._up_s:.1f} s ({seen_by})")
        self._decide()

    def not_up(self, wait_s: float) -> None:
        """The time is over in which it should have been."""
        self._context.output.warn(f"within {wait_s:g} s neither a login prompt was seen nor an answer of a guest agent")
        self._decide()

    def ended(self) -> None:
        """It is over."""
        self._decide()

    def failed(self, name: str, error: Exception) -> None:
        """A read or write of a disk of it; called by other threads."""
        self._context.output.warn(f"{name}: {error}")

    def over(self) -> None:
        """The last word."""
        self._context.output.note(f"Ended. {self._context.output.kept}")

    def _decide(self) -> None:
        if self.decided:
            return
        self.decided = True
        moment = self._view.moment
        self._context.output.document(
            {
                "moment": f"{self._view.vm.name}@{moment.label}",
                "vm": self._view.vm.name,
                "point": moment.point.point,
                "time": rfc3339(moment.found.moment.time_ns),
                "writes_after_point": moment.found.writes_after,
                "accelerator": self._accelerator,
                "seconds_started": round(self._started_s, 3),
                "seconds_up": round(self._up_s, 3) if self.seen_by else None,
                "seen_by": self.seen_by or None,
                "kept_in": self._keep_in,
            }
        )
