# SPDX-License-Identifier: AGPL-3.0-or-later
"""A capture that ended with an error leaves a note in its VM's folder: without it nobody could tell it, an hour later, from one
that was ended because nobody wants it any more. The next one takes the note away, and so does `unprotect`.

`failed.json`: `since_ns` since 1970, `why` in a sentence, `repository` (its id) into which it captured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import parse_json, text, whole

_NAME = "failed.json"
_LONGEST = 1 << 16


class FailedCapture(NamedTuple):
    """When and why a capture ended, and the id of the repository."""

    since_ns: int
    why: str
    repository: str


def note(folder: Path, failed: FailedCapture) -> None:
    """Leave the note. Raises OSError."""
    new = folder / f"{_NAME}-new"
    new.write_text(json.dumps(failed._asdict()))
    new.replace(folder / _NAME)


def noted(folder: Path) -> FailedCapture | None:
    """What the last capture there left, None where it ended in order. One that cannot be read says that much: it failed."""
    try:
        with (folder / _NAME).open("rb") as file:
            value = parse_json(_NAME, file.read(_LONGEST))
        return FailedCapture(whole(value, "since_ns"), text(value, "why"), text(value, "repository"))
    except FileNotFoundError:
        return None
    except (OSError, Corrupt) as error:
        return FailedCapture(0, f"why it did is not known: {error}", "")


def forget(folder: Path) -> None:
    """Take the note away. Raises OSError."""
    (folder / _NAME).unlink(missing_ok=True)
