# SPDX-License-Identifier: AGPL-3.0-or-later
"""The workplace of a run: the plan, the images, the tools that are there, and repositories that several measures share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.files import copy_files, real_files
from bench.images import from_tree
from bench.measured import CacheState, Machine, may_drop_caches, settle
from bench.plan import Plan
from bench.proof import content_of, prove
from bench.results import Results
from bench.tools import Borg, BorgFixed, Everywhen, QemuImg, Restic, Tool

ROOT = Path(__file__).resolve().parent.parent
OURS = "everywhen"
MAIN_VM = "main"


class NoRoom(Exception):
    """The work folder's file system is too small."""


class Lab:
    """State of one run. Everything it makes lies below `work`."""

    def __init__(self, plan: Plan, work: Path, program: str, log: Callable[[str], None]) -> None:
        self.plan = plan
        self.work = work
        self.program = program
        self.log = log
        self.results = Results()
        self.machine = Machine(work / "scratch", log)
        self.cold = may_drop_caches() and plan.cold_rounds > 0
        self.qemu = QemuImg(self.machine, work / "qemu-img", "qemu-img") if shutil.which("qemu-img") else None
        found: list[Tool] = [
            self.everywhen("everywhen"),
            Borg(self.machine, work / "borg", "borg"),
            Restic(self.machine, work / "restic", "restic"),
        ]
        self.tools: dict[str, Tool] = {tool.name: tool for tool in found if shutil.which(tool.program)}
        self.missing = [tool.name for tool in found if tool.name not in self.tools] + ([] if self.qemu else ["qemu-img"])
        self.backups: dict[str, list[tuple[str, str]]] = {}
        """(the tool's name for it, content) of the main image's backups, by tool, oldest first."""
        self._main: Path | None = None
        self._main_content = ""

    def everywhen(self, folder: str) -> Everywhen:
        """This project's tool with a repository of its own."""
        return Everywhen(self.machine, self.work / folder, self.program)

    def borg_fixed(self) -> BorgFixed | None:
        """borg with fixed chunks, where borg is."""
        return BorgFixed(self.machine, self.work / "borg-fixed", "borg") if "borg" in self.tools else None

    def need_room(self) -> None:
        """Raises NoRoom, before anything is written."""
        free, needed = shutil.disk_usage(self.work).free, self.plan.room()
        if free < needed:
            raise NoRoom(f"{self.work} has {free / 1e9:.1f} GB free; this run needs about {needed / 1e9:.0f} GB (--work DIR)")

    def rounds(self) -> Iterator[tuple[CacheState, bool]]:
        """The state of the cache in each round, and whether it is the last one of all."""
        states: list[CacheState] = ["cold"] * self.plan.cold_rounds if self.cold else []
        states += ["warm"] * (self.plan.warm_rounds if self.cold else max(self.plan.cold_rounds, self.plan.warm_rounds))
        for number, state in enumerate(states, 1):
            yield state, number == len(states)

    @property
    def states(self) -> list[CacheState]:
        """The states that are measured; targets are judged by the first."""
        return list(dict.fromkeys(state for state, _ in self.rounds()))

    def main_image(self) -> Path:
        """The ext4 image that most measures work on; made when it is first asked for."""
        if self._main is None:
            image = self.work / "image" / "main.raw"
            image.parent.mkdir(exist_ok=True)
            with self.tree() as tree:
                from_tree(image, tree, self.plan.main_image, "main")
            self._main, self._main_content = image, content_of(image)
            self.log(f"{image.name}: {os.stat(image).st_blocks * 512 / 1e9:.2f} GB of {self.plan.main_image / 1e9:.2f} GB")
        return self._main

    def main_content(self) -> str:
        """What the main image holds now."""
        self.main_image()
        return self._main_content

    def main_changed(self) -> None:
        """To be called after the main image was written to."""
        self._main_content = content_of(self.main_image())

    @contextmanager
    def tree(self) -> Iterator[Path]:
        """A folder with the files of the main image, while the body runs."""
        tree = self.work / "tree"
        self.log(f"{copy_files(real_files(self.plan.sources, self.plan.main_files, 'main'), tree) / 1e9:.2f} GB of real files")
        try:
            yield tree
        finally:
            shutil.rmtree(tree)

    def forget_main(self) -> None:
        """Remove the main image and the repositories that hold it: no later measure needs them, and some need the room."""
        for tool in self.tools.values():
            tool.clear()
        self.backups.clear()
        if self._main is not None:
            self._main.unlink()
            self._main = None

    def primed(self, name: str) -> Tool:
        """A tool whose repository holds at least one backup of the main image; made now if no measure has made it."""
        tool = self.tools[name]
        if name not in self.backups:
            tool.create()
            self.back_up_main(tool)
        return tool

    def back_up_main(self, tool: Tool) -> None:
        """A backup of the main image that is not measured; it becomes the tool's first one."""
        settle("warm", [])
        _, backup = tool.back_up(MAIN_VM, self.main_image())
        self.backups[tool.name] = [(backup, self.main_content())]

    def prove(self, tool: Tool, backup: str, image_name: str, content: str) -> None:
        """Restore and compare every byte; not measured. Raises WrongResult."""
        _, restored = tool.restore(backup, image_name)
        prove(restored, content, f"{tool.name}, {backup}")
        tool.clear_restored()
