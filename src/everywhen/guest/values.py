# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is said of guests' files (`tree.py`, `errors.py`), as JSON and back.

The way back is taken with answers of a process that a guest may have taken over: types, ranges and lengths are checked, and no
name passes that is a path. Raises Corrupt; whoever gets that trusts the process no longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Final

from everywhen.block.device import DeviceError
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, flag, mapping, objects, optional_text, text, texts, whole
from everywhen.guest import errors
from everywhen.guest.errors import GuestDamaged, GuestError, NoSuchPath
from everywhen.guest.names import name_error
from everywhen.guest.tree import DriveLetters, Entry, Kind, Run, Span, Stream, Times, Unreadable

_LARGEST: Final = (1 << 64) - 1
_LARGEST_TIME: Final = 1 << 100
"""ns; file systems with 64 bits of seconds can claim as much."""
_LONGEST_TEXT: Final = 4096
_LONGEST_TARGET: Final = 1 << 16
_ERRORS: Final[dict[str, type[Exception]]] = {
    one.__name__: one
    for one in (
        errors.WrongKind,
        errors.LinkUnusable,
        errors.GuestDamaged,
        errors.GuestUnsupported,
        errors.GuestLimit,
        DeviceError,
    )
}


def error_json(error: Exception) -> Json:
    """A GuestError or DeviceError."""
    if isinstance(error, NoSuchPath):
        return {"kind": "NoSuchPath", "path": error.path[:_LONGEST_TEXT], "nearest": error.nearest[:_LONGEST_TEXT]}
    kind = next((name for name, one in _ERRORS.items() if isinstance(error, one)), "GuestDamaged")
    return {"kind": kind, "text": str(error)[:_LONGEST_TEXT]}


def error_of(source: Json) -> GuestError | DeviceError:
    """The error again."""
    kind = text(source, "kind")
    if kind == "NoSuchPath":
        return NoSuchPath(short(source, "path"), short(source, "nearest"))
    found = _ERRORS.get(kind)
    if found is None:
        raise Corrupt(f"an error of kind {kind[:40]!r}")
    error = found(short(source, "text"))
    assert isinstance(error, GuestError | DeviceError)  # noqa: S101 - all in the table are
    return error


def entry_json(entry: Entry) -> Json:
    """An entry; what it does not have is left out."""
    times = entry.times
    fields: dict[str, Any] = {
        "name": entry.name,
        "kind": entry.kind.value,
        "number": entry.number,
        "size": entry.size,
        "times": [times.modified, times.changed, times.accessed, times.created],
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "links": entry.links,
        "allocated": entry.allocated,
        "target": entry.target,
        "device": entry.device and list(entry.device),
        "subvolume": entry.subvolume,
    }
    return {name: value for name, value in fields.items() if value is not None}


def sound_entry_json(entry: Entry) -> Json:
    """The same. Raises Corrupt for one that would not be believed."""
    spelled = entry_json(entry)
    entry_of(spelled, root=not entry.name)
    return spelled


def entry_of(source: Json, *, root: bool = False) -> Entry:
    """The entry again. Only a `root` has no name."""
    name = text(source, "name")
    if name if root else name_error(name):
        raise Corrupt(f"{name[:80]!r} is not the name of an entry")
    target = optional_text(source, "target")
    if target is not None and (len(target) > _LONGEST_TARGET or "\0" in target):
        raise Corrupt("a link that leads to what is no path")
    times = _list(source, "times")
    device = _list(source, "device") if "device" in source else None
    if len(times) != 4 or (device is not None and len(device) != 2):
        raise Corrupt("an entry with too many or too few numbers")
    return Entry(
        name=name,
        kind=_kind(source),
        number=_signed(source.get("number")),
        size=whole(source, "size", most=_LARGEST),
        times=Times(*(None if one is None else _signed(one) for one in times)),
        mode=whole(source, "mode", most=0o7777) if "mode" in source else None,
        uid=whole(source, "uid", most=0xFFFFFFFF) if "uid" in source else None,
        gid=whole(source, "gid", most=0xFFFFFFFF) if "gid" in source else None,
        links=whole(source, "links", most=_LARGEST),
        allocated=whole(source, "allocated", most=_LARGEST) if "allocated" in source else None,
        target=target,
        device=(_signed(device[0]), _signed(device[1])) if device is not None else None,
        subvolume=whole(source, "subvolume", most=_LARGEST),
    )


def listed_json(found: Entry | Unreadable) -> Json:
    """An entry of a folder, or what stands for one."""
    if isinstance(found, Entry):
        try:
            return sound_entry_json(found)
        except Corrupt as error:
            found = Unreadable(found.name, GuestDamaged(f"{found.name[:80]}: {error}"))
    return {"unreadable": found.name[:_LONGEST_TEXT], "error": error_json(found.error)}


def listed_of(source: Json) -> Entry | Unreadable:
    """The same again. The name of an Unreadable is only shown, and may be anything."""
    if "unreadable" not in source:
        return entry_of(source)
    error = error_of(mapping(source, "error"))
    if not isinstance(error, GuestError):
        raise Corrupt("an entry that cannot be read for a reason that is none")
    return Unreadable(short(source, "unreadable"), error)


def run_json(run: Run) -> list[int | None]:
    """Four or five numbers."""
    place = [run.stored.place, run.stored.length] if run.stored else [None, None]
    return [run.start, run.length, int(run.zero), *place]


def runs_of(source: Json, begin: int) -> list[Run]:
    """Runs that follow each other from `begin` on."""
    found: list[Run] = []
    for one in _list(source, "runs"):
        if not isinstance(one, list) or len(one) != 5:
            raise Corrupt("a run that is none")
        start, length, zero = (_natural(value) for value in one[:3])
        if start != begin or not length:
            raise Corrupt("runs that do not follow each other")
        stored = None if one[3] is None else Span(_natural(one[3]), _natural(one[4]))
        found.append(Run(start, length, bool(zero), stored))
        begin = start + length
    return found


def spans_of(source: Json) -> tuple[Span, ...]:
    """Places and lengths."""
    spans = _list(source, "spans")
    if not all(isinstance(one, list) and len(one) == 2 for one in spans):
        raise Corrupt("a span that is none")
    return tuple(Span(_natural(place), _natural(length)) for place, length in spans)


def places_of(source: Json, key: str) -> list[tuple[int, int]]:
    """Offsets and lengths, ascending and not touching each other."""
    found = []
    end = -1
    for one in _list(source, key):
        if not isinstance(one, list) or len(one) != 2:
            raise Corrupt("a place that is none")
        offset, length = _natural(one[0]), _natural(one[1])
        if offset <= end or not length:
            raise Corrupt("places that do not follow each other")
        end = offset + length
        found.append((offset, length))
    return found


def streams_of(source: Json) -> tuple[Stream, ...]:
    """Named streams; their names become names of files."""
    found = tuple(Stream(text(one, "name"), whole(one, "size", most=_LARGEST)) for one in objects(source, "streams"))
    if any(name_error(stream.name) for stream in found):
        raise Corrupt("a stream whose name is none")
    return found


def attributes_of(source: Json, body: bytes) -> dict[str, bytes]:
    """Names in the head, their values one after the other in the body."""
    found: dict[str, bytes] = {}
    at = 0
    for one in objects(source, "attributes"):
        name, length = text(one, "name"), whole(one, "length")
        if not name or "\0" in name or len(name) > _LONGEST_TEXT or at + length > len(body):
            raise Corrupt("an attribute that is none")
        found[name] = body[at : at + length]
        at += length
    return found


def short(source: Mapping[str, Any], key: str) -> str:
    """A text that is only shown, or compared."""
    found = text(source, key)
    if len(found) > _LONGEST_TEXT:
        raise Corrupt(f"field {key!r} has {len(found)} characters")
    return found


def shorts(source: Json, key: str) -> tuple[str, ...]:
    """A list of such texts."""
    found = texts(source, key)
    if any(len(one) > _LONGEST_TEXT for one in found):
        raise Corrupt(f"field {key!r} is too long")
    return tuple(found)


def _kind(source: Json) -> Kind:
    try:
        return Kind(text(source, "kind"))
    except ValueError as error:
        raise Corrupt("an entry of a kind that there is not") from error


def _list(source: Json, key: str) -> Sequence[Any]:
    found = source.get(key, [])
    if not isinstance(found, list):
        raise Corrupt(f"field {key!r} is not a list")
    return found


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        raise Corrupt("a number that is none")
    return value


def _signed(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -_LARGEST_TIME <= value <= _LARGEST_TIME:
        raise Corrupt("a number that is none")
    return value


def letters_json(letters: DriveLetters) -> Json:
    """Drive letters."""
    given, names = (
        [{"name": name, "disk": disk, "volume": volume} for name, (disk, volume) in of.items()]
        for of in (letters.given, letters.names)
    )
    return {"letters": given, "names": names, "whole": letters.whole}


def letters_of(source: Json) -> DriveLetters:
    """The drive letters of an answer."""
    given, names = (
        {short(one, "name"): (short(one, "disk"), short(one, "volume")) for one in objects(source, which)}
        for which in ("letters", "names")
    )
    if any(len(letter) != 1 or letter not in ascii_uppercase for letter in given):
        raise Corrupt("a drive letter that is none")
    return DriveLetters(given, names, flag(source, "whole"))
