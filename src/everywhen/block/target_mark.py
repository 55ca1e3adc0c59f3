# SPDX-License-Identifier: AGPL-3.0-or-later
"""The mark of a restore in place that has not ended: NAME.everywhen-restoring.

A restore in place cannot be atomic: until it ends, the disk is a mixture of two moments and must not be used. The mark
is durable before the first byte changes and goes away after the last one is durable, so whoever finds it knows. To go on,
restore again in place: what is right already is not written again.

The mark is a text file with one JSON object: `everywhen` "restoring", `source` (which moment, in the caller's words),
`target` (real path), `size` (bytes of the disk), `again` (the command that goes on with it; absent: that restore).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from everywhen.block.target import TargetUnsuitable, os_error
from everywhen.block.target_descriptor import OPEN_FLAGS, Descriptor, sync_folder

MARK_SUFFIX = ".everywhen-restoring"
_MAX_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Mark:
    """What is being restored where; `again`: the command that goes on with it, '' where it is a restore in place."""

    source: str
    target: str
    size: int
    again: str = ""

    @property
    def command(self) -> str:
        """What goes on with it."""
        return self.again or f"everywhen restore {self.source} --to {self.target} --in-place"


def mark_path(target: str, folder: str | None = None) -> str:
    """Where the mark of this target is: beside it, or in `folder` (for devices: names in /dev do not outlive the host)."""
    if folder is None:
        return target + MARK_SUFFIX
    return os.path.join(folder, target.strip("/\\").replace("/", "-").replace("\\", "-") + MARK_SUFFIX)


def read_mark(path: str) -> Mark | None:
    """The mark there, None when there is none. Raises TargetUnsuitable when a file of that name is something else."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_BYTES)
        fields = json.loads(raw)
        if not isinstance(fields, dict) or fields["everywhen"] != "restoring":
            raise ValueError("not a mark")
        return Mark(str(fields["source"]), str(fields["target"]), int(fields["size"]), str(fields.get("again", "")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise os_error(path, "be read", error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise TargetUnsuitable(f"{path} is not the mark of a restore. Nothing was written. Move it away.") from error


def leave_mark(path: str, mark: Mark) -> None:
    """Write the mark, replacing an older one whole; durable on return. Raises TargetError."""
    fields = {"everywhen": "restoring", "source": mark.source, "target": mark.target, "size": mark.size, "again": mark.again}
    new = path + "-new"
    try:
        file = Descriptor(new, os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | OPEN_FLAGS, 0o600))
        try:
            file.write(0, json.dumps(fields, ensure_ascii=False).encode())
            file.sync()
        finally:
            file.close()
        os.replace(new, path)
    except OSError as error:
        raise os_error(path, "be written", error) from error
    sync_folder(os.path.dirname(path))


def remove_mark(path: str) -> None:
    """Remove the mark, durable on return. Raises TargetError."""
    try:
        os.unlink(path)
    except OSError as error:
        raise os_error(path, "be removed", error) from error
    sync_folder(os.path.dirname(path))
