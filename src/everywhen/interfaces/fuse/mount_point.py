# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a file system of ours may be mounted: an empty folder, freed of a dead mount of ours if there is one.

A FUSE file system whose process was killed stays mounted: every access ends with ENOTCONN until somebody detaches it. libfuse's
`auto_unmount` would have a helper do that, but one that comes late takes away the mount that has followed.
Source: proc(5), /proc/PID/mountinfo; fusermount3(1).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from everywhen.services.failures import Busy, Failed, NotFound, WrongUsage, from_system

SUBTYPE = "everywhen"
"""The file system's type is `fuse.everywhen`, by which ours are told from others."""

_ESCAPED = re.compile(r"\\([0-7]{3})")
_MOST_DEAD = 16
"""So many dead mounts over one another are detached; a run that failed halfway may have left a second one."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """What is mounted on a folder: the type of the file system and its source."""

    kind: str
    source: str

    @property
    def ours(self) -> bool:
        """Whether it is a file system of this program."""
        return self.kind == f"fuse.{SUBTYPE}" and self.source == SUBTYPE


def mounted_on(path: str, mountinfo: str) -> Mounted | None:
    """What is on top of the folder `path` (absolute, no links in it), by the text of /proc/self/mountinfo."""
    found = None
    for line in mountinfo.splitlines():
        front, dash, back = line.partition(" - ")
        fields, rest = front.split(" "), back.split(" ")
        if dash and len(fields) > 4 and len(rest) > 1 and _plain(fields[4]) == path:
            found = Mounted(rest[0], _plain(rest[1]))
    return found


def freed(given: str) -> str:
    """The folder `given` as an absolute path, ready to be mounted on. Raises NotFound, WrongUsage, Busy, Failed."""
    if not os.path.exists("/dev/fuse") or shutil.which("fusermount3") is None:
        raise NotFound("FUSE is not there: /dev/fuse or fusermount3 is missing.", on=given, do=["apt-get install fuse3"])
    # Not `realpath` of all of it: on a dead mount nothing can be asked.
    path = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(given))), os.path.basename(os.path.abspath(given)))
    for _ in range(_MOST_DEAD):
        try:
            entries = os.listdir(path)
        except FileNotFoundError:
            raise NotFound(f"There is no folder {given}.", on=given, do=[f"mkdir {given}"]) from None
        except NotADirectoryError:
            raise WrongUsage(f"{given} is no folder.", on=given) from None
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise from_system(error) from error
            _detach(given, path)
            continue
        return _empty(given, os.path.realpath(path), entries)
    raise Failed(f"{given}: dead mounts are there that cannot be detached.", on=given, do=[f"fusermount3 -uz {given}"])


def _empty(given: str, path: str, entries: list[str]) -> str:
    there = _on_top(path)
    if there is not None and there.ours:
        raise Busy(f"{given}: Everywhen is mounted there already.", on=given, do=[f"fusermount3 -u {given}"])
    if entries:
        raise WrongUsage(f"{given} is not empty: what is in it would be hidden.", on=given, safe="Nothing was mounted.")
    return path


def _detach(given: str, path: str) -> None:
    """Detach the dead mount there, if it is one of ours. Raises Failed."""
    there = _on_top(path)
    if there is None or not there.ours:
        kind = "of another program" if there is None else f"of another program ({there.kind})"
        raise Failed(f"{given}: a mount {kind} is there, whose process has ended.", on=given, do=[f"fusermount3 -u {given}"])
    done = subprocess.run(["fusermount3", "-u", "-z", path], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        why = done.stderr.strip() or f"exit code {done.returncode}"
        raise Failed(f"{given}: the mount of a run that was killed cannot be detached ({why}).", on=given)


def _on_top(path: str) -> Mounted | None:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return mounted_on(path, file.read())


def _plain(field: str) -> str:
    """Blanks and the like are written as octal numbers there."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)
