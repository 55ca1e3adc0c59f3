# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen ls`: the volumes of a moment, or the files in a folder of the guest's."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Annotated

import typer

from everywhen.guest.errors import GuestError
from everywhen.guest.recognition import Role
from everywhen.guest.tree import Entry, FileSystem, Kind, Unreadable
from everywhen.interfaces.cli.app import LOOK, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.opened_files import OpenedFiles, entry_document, guest_time, opened_files, write_raw
from everywhen.services.failures import Exit, WrongUsage
from everywhen.services.sizes import size
from everywhen.services.times import zone_label
from everywhen.services.view.files import Place
from everywhen.services.view.volumes import GuestVolume

_KINDS = {
    Kind.FILE: stat.S_IFREG,
    Kind.FOLDER: stat.S_IFDIR,
    Kind.LINK: stat.S_IFLNK,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.PIPE: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}


@app.command("ls", rich_help_panel=LOOK)
def list_files(
    moment: Annotated[
        str, typer.Argument(metavar="MOMENT", help="web1@-10m:/etc, web1/vda@-10m:/p1/etc; no path: the volumes.")
    ],
    long: Annotated[bool, typer.Option("-l", help="Modes, owners, sizes and times, too.")] = False,
    raw: Annotated[bool, typer.Option("-0", help="Names only, as they are, each with a NUL after it.")] = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Files of a guest at a moment, or its volumes."""
    context = context_of(locals())
    if raw and as_json:
        raise WrongUsage("--json and -0 exclude one another.")
    with opened_files(context, moment, "ls") as opened:
        if raw:
            context.output.note(opened.heading)
        else:
            context.output.line(opened.heading)
        path = (opened.address.path or "").strip("/")
        if opened.address.path is None or (opened.address.disk is not None and not path):
            return _list_volumes(opened, raw=raw)
        return _list_folder(opened, long=long, raw=raw)


def _list_folder(opened: OpenedFiles, *, long: bool, raw: bool) -> int:
    output = opened.context.output
    place = opened.place()
    entries, unreadable = _listed(place)
    opened.note(place)
    output.document(
        {
            **opened.document,
            "path": opened.address.path,
            "notes": list(place.system.notes),
            "local_times": place.system.local_times,
            "entries": [entry_document(one) for one in entries],
            "unreadable": [{"name": one.name, "why": str(one.error)} for one in unreadable],
        }
    )
    if raw:
        write_raw(one.name for one in entries)
    elif long:
        _show_long(opened, entries)
    else:
        for one in entries:
            output.line(f"{one.name}/" if one.kind is Kind.FOLDER else one.name)
    for broken in unreadable:
        output.warn(f"{broken.name or 'more'} cannot be shown: {broken.error}")
    return Exit.LESS_THAN_ASKED if unreadable else Exit.DONE


def _listed(place: Place) -> tuple[list[Entry], list[Unreadable]]:
    """By name; what ended the folder too early is the last of the unreadable."""
    entries: list[Entry] = []
    unreadable: list[Unreadable] = []
    if place.found.entry.kind is not Kind.FOLDER:
        return [place.found.entry], []
    try:
        for one in place.system.entries(place.found.entry):
            if isinstance(one, Entry):
                entries.append(one)
            else:
                unreadable.append(one)
    except GuestError as error:
        unreadable.append(Unreadable("", error))
    return sorted(entries, key=lambda one: one.name), unreadable


def _show_long(opened: OpenedFiles, entries: Sequence[Entry]) -> None:
    zone = opened.context.zone
    rows = [
        (
            stat.filemode(_KINDS[one.kind] | (one.mode or 0)) if one.mode is not None else one.kind,
            str(one.links),
            "-" if one.uid is None else f"{one.uid}:{one.gid}",
            "{}, {}".format(*one.device) if one.device else f"{one.size:,}",
            guest_time(one.times.modified, zone),
            f"{one.name} -> {one.target}"
            if one.target is not None
            else f"{one.name}/"
            if one.kind is Kind.FOLDER
            else one.name,
        )
        for one in entries
    ]
    now = opened.view.moment.found.moment.time_ns
    columns = ["MODE", "LINKS", "OWNER", "SIZE", f"CHANGED ({zone_label(now, zone)})", "NAME"]
    opened.context.output.table(columns, rows, right=["LINKS", "SIZE"])


def _list_volumes(opened: OpenedFiles, *, raw: bool) -> int:
    """The volumes, with the paths by which their files are reached."""
    output, disk = opened.context.output, opened.address.disk
    volumes = [one for one in opened.files.volumes if disk is None or disk in one.disks]
    found = [(one, *_opened(opened, one)) for one in volumes]
    output.document(
        {
            **opened.document,
            "volumes": [
                {
                    "disks": list(volume.disks),
                    "name": volume.name,
                    "size": volume.size,
                    "kind": system.kind if system else volume.kind,
                    "role": volume.role.value,
                    "label": system.label if system else "",
                    "notes": notes,
                }
                for volume, system, notes in found
            ],
            "problems": opened.files.problems,
        }
    )
    if raw:
        write_raw(one.name for one in volumes)
        return Exit.DONE
    when = "" if opened.address.when is None else f"@{opened.address.when}"
    rows = [
        (
            f"{opened.view.vm.name}/{volume.disks[0]}{when}:/{volume.name}",
            size(volume.size),
            system.kind if system else volume.words,
            system.label if system else "",
            " ".join(notes),
        )
        for volume, system, notes in found
    ]
    output.table(["VOLUME", "SIZE", "HOLDS", "LABEL", "NOTE"], rows, right=["SIZE"])
    for text in opened.files.problems:
        output.warn(text)
    return Exit.LESS_THAN_ASKED if opened.files.problems else Exit.DONE


def _opened(opened: OpenedFiles, volume: GuestVolume) -> tuple[FileSystem | None, list[str]]:
    """Its file system, where it is one that can be read, and what is to be said of it."""
    notes = [] if volume.problem is None else [str(volume.problem)]
    if volume.role is not Role.FILES:
        return None, notes
    try:
        system = opened.files.system(volume)
    except GuestError as error:
        return None, [*notes, str(error)]
    return system, [*notes, *system.notes]
