# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files that an image refers to: parents, data files, extents. What an image says is not trusted.

A guest can write a qcow2 header to the first sector of its raw disk and so name any file of the host as its "backing
file" (the classic attack on format probing). So a reference must stay, with all symbolic links resolved, below the
folder of the image that the user named, unless the user allows more. Whoever knows an image's format should say it.

Relative names are looked up beside the image that refers, as its creator would: beside the name it was opened by.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from everywhen.block.host_file import HostFile
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageDamaged, ImageMissing, ImageUnsupported, ReferenceRefused

DEEPEST_CHAIN: Final = 64
_PROTOCOL: Final = re.compile(r"[A-Za-z0-9+.-]+:")


@dataclass(frozen=True, slots=True)
class Chain:
    """An image that is being opened, and what was opened on the way to it.

    path: the name it was found by. root: the folder that references must not leave. ancestors: (device, inode) of the
    images above it. opened: closes everything again when opening fails. open_path: opens (chain, file, format or None).
    """

    path: str
    root: str
    allow_outside: bool
    opened: ExitStack
    open_path: Callable[[Chain, HostFile, str | None], Image]
    ancestors: tuple[tuple[int, int], ...] = ()

    def open_parent(self, names: Sequence[str], format: str | None) -> Image:  # noqa: A002
        """The image under the first of `names` that exists."""
        return self._open_parent(names, format, any_case=False)

    def open_identified_parent(self, names: Sequence[str], format: str, identities: Collection[str]) -> Image:  # noqa: A002
        """A parent that its child knows by an identity, under a name that was written on Windows (so in any case)."""
        parent = self._open_parent(names, format, any_case=True)
        if parent.identity not in identities:
            raise ImageDamaged(
                f"{self.path} was made on another state of {parent.files[0]}: the parent was changed or exchanged since"
            )
        return parent

    def _open_parent(self, names: Sequence[str], format: str | None, *, any_case: bool) -> Image:  # noqa: A002
        if len(self.ancestors) >= DEEPEST_CHAIN:
            raise ReferenceRefused(f"{self.path}: the chain of parents is longer than {DEEPEST_CHAIN}")
        found, host = self._open(names, any_case=any_case)
        return self.open_path(replace(self, path=found), host, format)

    def open_file(self, names: Sequence[str]) -> HostFile:
        """A file that holds a part of the image's data."""
        return self._open(names, any_case=False)[1]

    def adopt(self, file: HostFile) -> HostFile:
        """`file`, which is closed if opening the image fails."""
        self.opened.callback(file.close)
        return file

    def enter(self, host: HostFile) -> Chain:
        """The chain with this image's file in it, so that references back to it are refused."""
        return replace(self, ancestors=(*self.ancestors, host.identity))

    def _open(self, names: Sequence[str], *, any_case: bool) -> tuple[str, HostFile]:
        outside = ""
        for name in names:
            if not name or "\0" in name:
                continue
            beside = os.path.join(os.path.dirname(os.path.abspath(self.path)), name)
            path = _in_any_case(beside) if any_case else beside
            real = os.path.realpath(path)
            if not self.allow_outside and not _is_below(real, self.root):
                outside = outside or name
                continue
            if not os.path.exists(real):
                continue
            host = self.adopt(HostFile(real))
            if host.identity in self.ancestors:
                raise ReferenceRefused(f"{self.path} refers to itself through {name!r}")
            return path, host
        if outside:
            raise ReferenceRefused(
                f"{self.path} refers to {outside!r}, which is outside its folder; if you trust this image: --allow-outside"
            )
        wanted = " or ".join(repr(name) for name in names if name) or "a file without a name"
        raise ImageMissing(f"{self.path} needs {wanted}, which is not there; put it beside the image")


def qemu_name(chain: Chain, name: str) -> str:
    """A file name as QEMU writes it into images; names of network disks and JSON descriptions are refused."""
    name = name.removeprefix("file:")
    if _PROTOCOL.match(name.partition("/")[0]) and not (os.name == "nt" and re.match(r"[A-Za-z]:", name)):
        raise ImageUnsupported(f"{chain.path} refers to {name!r}, which is not a file")
    return name


def windows_names(relative: str, absolute: str) -> list[str]:
    """Where a parent that Windows or VMware names may be here: where it says, else beside the image."""
    names = [relative.replace("\\", "/")] if relative else []
    if absolute:
        names.append(re.split(r"[\\/]", absolute)[-1])
        names.append(absolute.replace("\\", "/"))
    return names


def _is_below(real: str, root: str) -> bool:
    return real.startswith(root.rstrip(os.sep) + os.sep)


def _in_any_case(path: str) -> str:
    """`path`, or the only file in its folder whose name differs from it in case only."""
    folder, name = os.path.split(path)
    if os.path.exists(path) or not os.path.isdir(folder):
        return path
    alike = [entry for entry in os.listdir(folder) if entry.casefold() == name.casefold()]
    return os.path.join(folder, alike[0]) if len(alike) == 1 else path
