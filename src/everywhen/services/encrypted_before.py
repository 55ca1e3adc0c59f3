# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which repositories this host has opened as encrypted ones: whoever exchanges such a one for one without encryption shall not
get the next backup in the clear, also where nobody gives a passphrase unasked (I-8, docs/threat-model.md).

A note each, in the state folder and not among the caches, which may be deleted at any time: `_encrypted/<of the URL>.json`
with `url` and `repository` (its id, hex). A repository is known by either: an exchanged one may have any id, and the same one
may be reached by another way. A note that is lost, or that another user of this host has, costs this warning only.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

_FOLDER = "_encrypted"
"""In the state folder. No VM can be called so."""


def note_encrypted(state: Path, url: str, repository: str) -> None:
    """Remember that what is at `url` is encrypted. Raises OSError."""
    place, content = _place(state, url), json.dumps({"url": url, "repository": repository})
    try:
        if place.read_text(encoding="utf-8") == content:
            return
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.write_text(content, encoding="utf-8")


def noted_encrypted(state: Path, url: str, repository: str) -> Path | None:
    """The note by which the repository was encrypted once; None where nobody here knows of any."""
    for place in sorted((state / _FOLDER).glob("*.json")):
        try:
            note = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # torn, or another user's
        if isinstance(note, dict) and (note.get("url") == url or note.get("repository") == repository):
            return place
    return None


def forget_encrypted(state: Path, url: str) -> None:
    """A new repository without encryption is made at `url`, by who knows what he does. Raises OSError."""
    _place(state, url).unlink(missing_ok=True)


def _place(state: Path, url: str) -> Path:
    return state / _FOLDER / f"{sha256(url.encode()).hexdigest()[:32]}.json"
