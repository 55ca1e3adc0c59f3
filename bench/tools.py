# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tools that are compared, each with a repository of its own. Settings are those that favour it and keep its promises.

All are given the same image under the same name; each restores it as a file again. What makes a repository is not measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.measured import Machine, Run, ToolFailed

PASSPHRASE = "for benchmarks only"  # noqa: S105 - protects nothing


@dataclass(frozen=True, slots=True)
class Places:
    """Where a tool's things lie: repository, caches and other state, restored files."""

    root: Path

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def restored(self) -> Path:
        return self.root / "restored"


@dataclass(frozen=True, slots=True)
class Listed:
    """A point as Everywhen lists it, and the bytes that were stored for its blocks."""

    point: str
    stored: int


@dataclass(frozen=True, slots=True)
class Known:
    """What a backup may be told: a list of changed extents (JSON), and the backup since which they changed."""

    listed: Path
    since: str


class Workplace:
    """What all tools have alike: folders, environment, sizes."""

    name: str
    settings: str

    def __init__(self, machine: Machine, root: Path, program: str) -> None:
        self.machine = machine
        self.program = program
        self.places = Places(root)
        self.env: dict[str, str] = {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", "HOME": str(self.places.state)}

    def clear(self) -> None:
        """Remove everything of this tool, and make its folders anew."""
        shutil.rmtree(self.places.root, ignore_errors=True)
        self.places.state.mkdir(parents=True)

    def clear_restored(self) -> Path:
        """An empty folder for restored files."""
        shutil.rmtree(self.places.restored, ignore_errors=True)
        self.places.restored.mkdir(parents=True)
        return self.places.restored

    def stored_bytes(self) -> int:
        """Sum of the sizes of all files in the repository."""
        found = (os.path.join(folder, name) for folder, _, names in os.walk(self.places.repository) for name in names)
        return sum(os.lstat(path).st_size for path in found)


class Tool(Workplace, ABC):
    """A backup tool with one repository."""

    def elsewhere(self, root: Path) -> Self:
        """The same tool with a repository of its own."""
        return type(self)(self.machine, root, self.program)

    @abstractmethod
    def create(self) -> None:
        """Make an empty repository. Not measured."""

    @abstractmethod
    def back_up(self, vm: str, image: Path) -> tuple[Run, str]:
        """One backup; what it cost, and the tool's name for it."""

    @abstractmethod
    def restore(self, backup: str, image_name: str) -> tuple[Run, Path]:
        """One restore to a new file; what it cost, and the file."""

    def _run(self, arguments: list[str], cwd: Path, *, quiet: bool = False) -> Run:
        return self.machine.run([self.program, *arguments], cwd=cwd, env=self.env, quiet=quiet)


class Everywhen(Tool):
    """This project's command line, as users run it."""

    name = "everywhen"
    settings = "AES-256-GCM, zstd level 1"

    def __init__(self, machine: Machine, root: Path, program: str) -> None:
        super().__init__(machine, root, program)
        self.passphrase = self.places.state / "passphrase"
        self.cache = self.places.state / "cache"
        self.env |= {
            "EVERYWHEN_REPO": str(self.places.repository),
            "EVERYWHEN_PASSPHRASE_FILE": str(self.passphrase),
            "EVERYWHEN_CACHE": str(self.cache),
            "EVERYWHEN_STATE": str(self.places.state / "everywhen-state"),
        }

    def create(self) -> None:
        """Without the reserve, so that the size of the repository is that of the backups."""
        self.clear()
        self.passphrase.write_text(PASSPHRASE)
        self._run(["init", str(self.places.repository), "--no-reserve", "--json"], self.places.root, quiet=True)

    def back_up(self, vm: str, image: Path) -> tuple[Run, str]:
        """Compares the whole image by hash."""
        return self._back_up(vm, image, [])

    def back_up_changed(self, vm: str, image: Path, known: Known) -> tuple[Run, str]:
        """Reads only what changed."""
        since = known.since.partition("@")[2]
        return self._back_up(vm, image, ["--changed-blocks", f"vda={known.listed}", "--since", since])

    def _back_up(self, vm: str, image: Path, given: list[str]) -> tuple[Run, str]:
        run = self._run(["backup", vm, f"vda={image}", *given, "--json"], image.parent)
        return run, f"{vm}@{json.loads(run.out)['point']}"

    def amplification(self) -> dict[str, float]:
        """What it says of the bytes that it stored for what was written to captured VMs. Not measured."""
        told = json.loads(self._run(["stats", "--json"], self.places.root, quiet=True).out)
        found: dict[str, float] = told["write_amplification"]
        return found

    def points(self, vm: str) -> list[Listed]:
        """Its points, newest first. Not measured."""
        found = json.loads(self._run(["points", vm, "--json"], self.places.root, quiet=True).out)
        return [Listed(point["id"], sum(disk["bytes_stored"] for disk in point["disks"].values())) for point in found]

    def restore(self, backup: str, image_name: str) -> tuple[Run, Path]:
        """To a new raw image."""
        to = self.clear_restored() / image_name
        return self._run(["restore", backup, "--to", str(to), "--json"], self.places.root), to


class Borg(Tool):
    """borg 1.x, with its default chunker (buzhash)."""

    name = "borg"
    settings = "repokey-blake2, zstd,1; extract --sparse"
    chunking: tuple[str, ...] = ()

    def __init__(self, machine: Machine, root: Path, program: str) -> None:
        super().__init__(machine, root, program)
        self.env |= {"BORG_BASE_DIR": str(self.places.state), "BORG_PASSPHRASE": PASSPHRASE}
        self.env |= {"BORG_REPO": str(self.places.repository)}
        self._count = 0

    def create(self) -> None:
        """See Tool."""
        self.clear()
        self._run(["init", "--encryption", "repokey-blake2"], self.places.root, quiet=True)

    def back_up(self, vm: str, image: Path) -> tuple[Run, str]:
        """Archives are numbered; the file is named relative to its folder."""
        self._count += 1
        archive = f"{vm}-{self._count}"
        command = ["create", "--compression", "zstd,1", *self.chunking, f"::{archive}", image.name]
        return self._run(command, image.parent), archive

    def restore(self, backup: str, image_name: str) -> tuple[Run, Path]:
        """Into an empty folder."""
        folder = self.clear_restored()
        return self._run(["extract", "--sparse", f"::{backup}"], folder), folder / image_name


class BorgFixed(Borg):
    """borg as one would set it up for disk images: chunks of 64 KiB at fixed places."""

    name = "borg, fixed 64 KiB"
    settings = "repokey-blake2, zstd,1, --chunker-params fixed,65536 --sparse --files-cache disabled"
    chunking = ("--chunker-params", "fixed,65536", "--sparse", "--files-cache", "disabled")


class Restic(Tool):
    """restic, as it comes."""

    name = "restic"
    settings = "as it comes"

    def __init__(self, machine: Machine, root: Path, program: str) -> None:
        super().__init__(machine, root, program)
        self.env |= {"RESTIC_REPOSITORY": str(self.places.repository), "RESTIC_PASSWORD": PASSPHRASE}
        self.env |= {"RESTIC_CACHE_DIR": str(self.places.state / "cache")}

    def create(self) -> None:
        """See Tool."""
        self.clear()
        self._run(["init"], self.places.root, quiet=True)

    def back_up(self, vm: str, image: Path) -> tuple[Run, str]:
        """The file is named relative to its folder, so that it lies at the top of the snapshot."""
        run = self._run(["backup", "--json", "--tag", vm, image.name], image.parent)
        summary = [json.loads(line) for line in run.out.splitlines() if '"summary"' in line]
        if not summary:
            raise ToolFailed("restic backup printed no summary")
        return run, str(summary[-1]["snapshot_id"])

    def restore(self, backup: str, image_name: str) -> tuple[Run, Path]:
        """Into an empty folder."""
        folder = self.clear_restored()
        return self._run(["restore", backup, "--target", str(folder)], self.places.root), folder / image_name


class QemuImg(Workplace):
    """Not a backup: the copy that `qemu-img convert` makes, as a yardstick of what the disk and one core can do."""

    name = "qemu-img convert"
    settings = "convert -O raw"

    def copy(self, image: Path) -> tuple[Run, Path]:
        """To a new raw image."""
        to = self.clear_restored() / image.name
        run = self.machine.run(
            [self.program, "convert", "-f", "raw", "-O", "raw", str(image), str(to)], cwd=to.parent, env=self.env
        )
        return run, to


def version(program: str, env: Mapping[str, str]) -> str | None:
    """The first line of what a program says of its version; None when it is not there."""
    if shutil.which(program) is None:
        return None
    argument = {"restic": "version", "mke2fs": "-V", "mkfs.xfs": "-V"}.get(os.path.basename(program), "--version")
    done = subprocess.run([program, argument], capture_output=True, text=True, env=dict(env), check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0] if (done.stdout or done.stderr).strip() else "unknown"
