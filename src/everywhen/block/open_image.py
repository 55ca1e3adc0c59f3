# SPDX-License-Identifier: AGPL-3.0-or-later
"""The one way to open a disk image or a block device for reading."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from everywhen.block.detect import detect
from everywhen.block.host_file import HostFile
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageUnsupported
from everywhen.block.qcow2 import open_qcow2
from everywhen.block.raw import open_raw
from everywhen.block.references import Chain
from everywhen.block.vdi import open_vdi
from everywhen.block.vhd import open_vhd
from everywhen.block.vhdx import open_vhdx
from everywhen.block.vmdk import open_vmdk

_OPENERS: Final[dict[str, Callable[[HostFile, Chain], Image]]] = {
    "qcow2": open_qcow2,
    "raw": open_raw,
    "vdi": open_vdi,
    "vhd": open_vhd,
    "vhdx": open_vhdx,
    "vmdk": open_vmdk,
}

FORMATS: Final = tuple(_OPENERS)
"""What `format` may be."""


def open_image(path: str, *, format: str | None = None, allow_outside: bool = False) -> Image:  # noqa: A002
    """The disk in the image or block device `path`.

    format: one of FORMATS; without it, what the content is (of a raw disk the guest decides what that looks like: say
    the format when you know it). allow_outside: parents and data files may be outside the image's folder.
    Raises ImageError, with one sentence that says what is wrong and what to do.
    """
    root = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    with ExitStack() as opened:
        chain = Chain(path, root, allow_outside, opened, _open)
        image = _open(chain, chain.adopt(HostFile(os.path.abspath(path))), format)
        opened.pop_all()
    return image


def _open(chain: Chain, host: HostFile, format: str | None) -> Image:  # noqa: A002
    name = format or detect(host)
    if name not in _OPENERS:
        raise ImageUnsupported(f"{host.path} is said to be of format {name!r}; supported are {', '.join(FORMATS)}")
    return _OPENERS[name](host, chain.enter(host))
