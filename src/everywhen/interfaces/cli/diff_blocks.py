# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen diff --blocks`: the bytes of disks that differ between two moments."""

from __future__ import annotations

from everywhen.interfaces.cli.opened_files import OpenedFiles
from everywhen.services.failures import Exit, NotFound
from everywhen.services.sizes import size
from everywhen.services.view.differing_extents import differing_blocks, extents


def show_blocks(old: OpenedFiles, new: OpenedFiles) -> int:
    """Of the disk that is named, or of all. Raises NotFound, Damaged, StorageError."""
    output = new.context.output
    asked = old.address.disk or new.address.disk
    both = [set(side.view.disks) for side in (old, new)]
    names = [asked] if asked else sorted(both[0] & both[1])
    for name in names:
        if not all(name in one for one in both):
            raise NotFound(f"The disk {name} is not in both moments.", on=name)
    fetcher = new.repository.fetcher
    found = {}
    for name in names:
        sizes = [side.view.disks[name].size for side in (old, new)]
        blocks = differing_blocks(fetcher, old.view, new.view, name)
        found[name] = sizes, list(extents(blocks, max(sizes)))
    output.document(
        {
            "from": old.document,
            "to": new.document,
            "disks": {
                name: {
                    "size_before": sizes[0],
                    "size_after": sizes[1],
                    "bytes": sum(length for _, length in ranges),
                    "extents": [{"start": start, "length": length} for start, length in ranges],
                }
                for name, (sizes, ranges) in found.items()
            },
            "only_before": sorted(both[0] - both[1]),
            "only_after": sorted(both[1] - both[0]),
        }
    )
    for name, (sizes, ranges) in found.items():
        resized = "" if sizes[0] == sizes[1] else f"; its size was {sizes[0]:,} bytes and is {sizes[1]:,}"
        differ = sum(length for _, length in ranges)
        output.line(f"{name}: {size(differ)} differ, in blocks of 64 KiB, {len(ranges):,} stretches{resized}")
        output.table(
            ["START", "LENGTH"], [(f"{start:,}", f"{length:,}") for start, length in ranges], right=["START", "LENGTH"]
        )
    for side, other, when in ((both[0], both[1], "before"), (both[1], both[0], "after")):
        for name in [] if asked else sorted(side - other):
            output.line(f"{name}: only {when}")
    return Exit.DONE
