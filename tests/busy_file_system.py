# SPDX-License-Identifier: AGPL-3.0-or-later
"""A program that uses a file system as a guest does, some of it synced: `busy_file_system.py FOLDER SEED STEPS [few]`.

`few`: with so few names that they are in each other's way all the time, and seldom all is synced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import subprocess
import sys
from pathlib import Path

_CLONE = 0x40049409


class Busy:
    """Each step is one change; what has gone meanwhile is no error."""

    def __init__(self, folder: Path, seed: int, *, few: bool = False) -> None:
        self.top = folder
        self.chance = random.Random(seed)
        self.kept = [folder]
        made = subprocess.run(["btrfs", "subvolume", "create", folder / "subvolume"], check=False, capture_output=True)
        if not made.returncode:  # on Btrfs, where it has a log of its own
            self.kept.append(folder / "subvolume")
        self.folders = [*self.kept]
        self.files: list[Path] = []
        self.few = few
        self.steps = [
            *[self.write] * 8, *[self.append] * 5, *[self.rename] * 4, *[self.remove] * 4, *[self.folder] * 2, self.no_folder,
            self.many, self.link, self.link, self.soft_link, *[self.attribute] * 3, self.no_attribute, self.shorter, self.owner,
            self.allocate, self.punch, self.clone, *[self.sync] * 4, self.sync_folder, self.scattered, self.move_folder,
        ]  # fmt: skip
        if few:
            for name in ("a", "b"):
                (folder / name).mkdir()
                self.folders.append(folder / name)
            self.kept = [*self.folders]
            self.steps = [
                *[self.write] * 3, *[self.rename] * 5, *[self.remove] * 3, *[self.link] * 3, self.folder, self.move_folder,
                self.no_folder, self.attribute, self.no_attribute, self.append, *[self.sync] * 3, *[self.sync_folder] * 3,
            ]  # fmt: skip

    def step(self) -> None:
        """One of them."""
        with contextlib.suppress(OSError):
            self.chance.choice(self.steps)()

    def name(self, folder: Path | None = None) -> Path:
        """Of something new, or that is there."""
        if self.few:
            return (folder or self.chance.choice(self.folders)) / f"n{self.chance.randrange(9)}"
        length = self.chance.choice((3, 8, 20, 60, 200))
        return (folder or self.chance.choice(self.folders)) / f"{self.chance.randrange(10**6):x}".ljust(length, "n")

    def file(self) -> Path:
        """One that was there."""
        return self.chance.choice(self.files) if self.files else self.name()

    def write(self) -> None:
        """A new file, mostly synced."""
        path = self.name()
        with path.open("wb") as file:
            file.write(self.chance.randbytes(self.chance.choice((0, 10, 300, 3000, 5000, 70_000, 300_000))))
            if self.chance.random() < 0.5:
                file.flush()
                os.fsync(file.fileno())
        self.files.append(path)

    def append(self) -> None:
        """More of one, or another middle."""
        with self.file().open("r+b") as file:
            file.seek(self.chance.choice((0, 100, 10_000)), self.chance.choice((0, 2)))
            file.write(self.chance.randbytes(self.chance.choice((5, 4096, 20_000))))
            if self.chance.random() < 0.5:
                file.flush()
                os.fsync(file.fileno())

    def rename(self) -> None:
        """To a new name, or over another file."""
        old = self.file()
        new = self.file() if self.chance.random() < 0.4 else self.name()
        old.rename(new)
        self.files = [path for path in self.files if path != old] + [new]

    def remove(self) -> None:
        """One."""
        path = self.file()
        path.unlink()
        self.files = [one for one in self.files if one != path]

    def folder(self) -> None:
        """A new one."""
        path = self.name()
        path.mkdir()
        self.folders.append(path)

    def no_folder(self) -> None:
        """One with all that is in it."""
        path = self.chance.choice(self.folders[len(self.kept) :] or [self.name()])
        subprocess.run(["rm", "-rf", path], check=False)
        self.folders = [one for one in self.folders if path not in (one, *one.parents)]
        self.files = [one for one in self.files if path not in one.parents]

    def move_folder(self) -> None:
        """One with all that is in it goes elsewhere."""
        old, new = self.chance.choice(self.folders[len(self.kept) :] or [self.name()]), self.name()
        old.rename(new)
        self.folders = [new / one.relative_to(old) if old in (one, *one.parents) else one for one in self.folders]
        self.files = [new / one.relative_to(old) if old in one.parents else one for one in self.files]

    def many(self) -> None:
        """So many in one folder that it becomes large."""
        folder = self.chance.choice(self.folders)
        for _ in range(self.chance.choice((20, 100, 250))):
            path = self.name(folder)
            path.touch()
            self.files.append(path)

    def link(self) -> None:
        """Another name of a file."""
        path = self.name()
        os.link(self.file(), path)
        self.files.append(path)

    def soft_link(self) -> None:
        """Short, or so long that it has blocks of its own."""
        self.name().symlink_to("t" * self.chance.choice((5, 100, 900)))

    def attribute(self) -> None:
        """Small, or so large that they leave the inode."""
        value = self.chance.randbytes(self.chance.choice((1, 40, 200, 1500)))
        os.setxattr(
            self.chance.choice((self.file(), self.chance.choice(self.folders))), f"user.{self.chance.randrange(9)}", value
        )

    def no_attribute(self) -> None:
        """One is removed."""
        os.removexattr(self.file(), f"user.{self.chance.randrange(9)}")

    def shorter(self) -> None:
        """Or longer, with a hole."""
        os.truncate(self.file(), self.chance.choice((0, 10, 5000, 1_000_000)))

    def owner(self) -> None:
        """Owner and mode."""
        path = self.file()
        os.chown(path, self.chance.randrange(70_000), 7)
        path.chmod(self.chance.choice((0o600, 0o4755, 0o640)))

    def allocate(self) -> None:
        """Room for a file."""
        with self.file().open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, self.chance.choice((10_000, 500_000)))

    def punch(self) -> None:
        """A hole in one."""
        subprocess.run(["fallocate", "-p", "-o", "4096", "-l", "16384", self.file()], check=False, capture_output=True)

    def clone(self) -> None:
        """A file that shares another one's blocks."""
        path = self.name()
        with self.file().open("rb") as old, path.open("wb") as new:
            fcntl.ioctl(new.fileno(), _CLONE, old.fileno())
        self.files.append(path)

    def scattered(self) -> None:
        """A file in many pieces."""
        path = self.name()
        with path.open("wb") as file:
            for number in reversed(range(self.chance.choice((30, 200)))):
                os.pwrite(file.fileno(), b"scattered" * 100, number * 12288)
            os.fsync(file.fileno())
        self.files.append(path)

    def sync(self) -> None:
        """A file that was written before."""
        with self.file().open("rb") as file:
            os.fsync(file.fileno())

    def sync_folder(self) -> None:
        """A folder, or everything."""
        if self.chance.random() < (0.03 if self.few else 0.3):
            os.sync()
        descriptor = os.open(self.chance.choice(self.folders), os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


if __name__ == "__main__":
    busy = Busy(Path(sys.argv[1]), int(sys.argv[2]), few=sys.argv[4:] == ["few"])
    for _ in range(int(sys.argv[3])):
        busy.step()
