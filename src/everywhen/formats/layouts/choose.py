# SPDX-License-Identifier: AGPL-3.0-or-later
"""The image formats that can be written, by the names that users type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from everywhen.formats.layouts import qcow2, raw, vhd, vhdx, vmdk
from everywhen.formats.layouts.layout import Identity, Layout
from everywhen.formats.layouts.runs import Runs

LayOut = Callable[[int, Runs, Identity], Layout]
"""(disk size in bytes, allocated bytes, identity) -> layout. Raises LayoutError for a disk that does not fit."""

FORMATS: Mapping[str, LayOut] = MappingProxyType(
    {
        "raw": raw.lay_out,
        "qcow2": qcow2.lay_out,
        "vhd": vhd.lay_out,
        "vhd-fixed": vhd.lay_out_fixed,
        "vhdx": vhdx.lay_out,
        "vmdk": vmdk.lay_out,
    }
)
