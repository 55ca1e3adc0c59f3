# SPDX-License-Identifier: AGPL-3.0-or-later
"""The real files that images are filled with: this machine's own, chosen and ordered by a seed."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RealFile:
    """A file to copy: from where, to where (relative), bytes."""

    source: str
    path: str
    size: int

    @property
    def folder(self) -> str:
        """The relative folder."""
        return os.path.dirname(self.path)


class NotEnoughFiles(Exception):
    """This machine has too few files for the size that was asked for."""


def real_files(sources: tuple[str, ...], wanted: int, seed: str) -> list[RealFile]:
    """Regular files of about `wanted` bytes in all (97 % at least): whole folders, drawn by `seed`.

    The folders in `sources` are gone through in this order, until there is enough. Raises NotEnoughFiles.
    """
    chosen: list[RealFile] = []
    total = 0
    for source in sources:
        folders = [list(files) for _, files in groupby(_regular_files(source), key=lambda file: file.folder)]
        random.Random(seed).shuffle(folders)
        for files in folders:
            size = sum(file.size for file in files)
            if total + size <= wanted:
                chosen += files
                total += size
        if total >= 0.97 * wanted:
            return chosen
    raise NotEnoughFiles(f"{', '.join(sources)} have {total / 1e9:.1f} GB of files; {wanted / 1e9:.1f} GB are needed")


def another_installation(files: list[RealFile], pool: list[RealFile], seed: str, share: float) -> list[RealFile]:
    """The same files in another order of folders, `share` of their bytes replaced by other files from `pool`."""
    chance = random.Random(seed)
    others = chance.sample(pool, len(pool))
    wanted = share * sum(file.size for file in files)
    replaced: dict[str, RealFile] = {}
    spent = 0
    for file in chance.sample(files, len(files)):
        if spent >= wanted or not others:
            break
        # A large file that alone exceeds what is left would make the share a matter of luck.
        if file.size <= wanted - spent or not replaced:
            other = others.pop()
            replaced[file.path] = RealFile(other.source, file.path, other.size)
            spent += max(file.size, other.size)
    folders = [list(group) for _, group in groupby(files, key=lambda file: file.folder)]
    chance.shuffle(folders)
    return [replaced.get(file.path, file) for folder in folders for file in folder]


def copy_files(files: list[RealFile], to: Path) -> int:
    """Copy them in this order, content only; bytes copied. A file that has gone meanwhile is left out."""
    copied = 0
    for file in files:
        target = to / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(file.source, "rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
                copied += sink.tell()
        except FileNotFoundError:
            continue
    return copied


@cache
def _regular_files(source: str) -> tuple[RealFile, ...]:
    return tuple(_walk(source))


def _walk(source: str) -> Iterator[RealFile]:
    """Regular files of one file system below `source`, folder by folder, in the order of their names."""
    if not os.path.isdir(source):
        return
    device = os.stat(source).st_dev
    for folder, folders, names in os.walk(source):
        folders.sort()
        if os.lstat(folder).st_dev != device:
            folders.clear()
            continue
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            # NTFS refuses these, and a machine has few of them.
            if stat.S_ISREG(found.st_mode) and found.st_size and not set(name) & set('\\:*?"<>|'):
                yield RealFile(path, path.lstrip("/"), found.st_size)
