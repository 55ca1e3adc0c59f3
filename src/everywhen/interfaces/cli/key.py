# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen key list|change|add|remove|rotate|recovery|sheet`: who can open the repository (ux R17).

Secrets come from files or are typed; none is ever an argument. What opens the repository now comes from the common options,
what shall open it from `--new-passphrase-file`: two different questions must not share one answer.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import typer

from everywhen.formats.keyslot import PASSPHRASE, KeySlot
from everywhen.interfaces.cli.app import (
    RUN,
    AsJson,
    DryRun,
    PassphraseFile,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.context import Context, read_secret, typed_twice
from everywhen.interfaces.cli.recovery_sheet import sheet
from everywhen.repository.keys import keys
from everywhen.repository.keys.keys import Mint, Unlocked
from everywhen.repository.keys.keyslots import SlotTable
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.translation import failing
from everywhen.storage.base import ObjectStore

key_app = typer.Typer(help="Who can open the repository.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)
app.add_typer(key_app, name="key", rich_help_panel=RUN)
key_app.command("sheet")(sheet)

NewPassphraseFile = Annotated[
    str | None,
    typer.Option(
        "--new-passphrase-file", metavar="FILE", help="File whose first line is the new passphrase; else it is asked."
    ),
]
Label = Annotated[str, typer.Option("--label", metavar="TEXT", help="Whose it is, or where it lies.")]


class Opened(NamedTuple):
    """A repository's store and keys."""

    store: ObjectStore
    unlocked: Unlocked
    mint: Mint


@contextmanager
def opened(context: Context) -> Iterator[Opened]:
    """Store and keys, without caches and index: keys must be changeable when nothing else works."""
    store = context.store()
    with failing(context.opened_url):
        surroundings = context.surroundings()
        yield Opened(store, context.unlock(store), Mint(surroundings.randomness, surroundings.clock()))


@key_app.command("list")
def list_keys(repo: Repo = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """The key slots: which passphrases and recovery keys open the repository. Needs no secret."""
    context = context_of(locals())
    store = context.store()
    with failing(context.opened_url):
        superblock = keys.read_superblock(store)
        table = keys.list_slots(store, superblock)
    context.output.document(
        {
            "repository": superblock.repository_id.hex(),
            "encryption": superblock.encryption,
            "slots": [_document(slot, table) for slot in table.slots],
            "unreadable": {slot: str(error) for slot, error in table.unreadable.items()},
        }
    )
    if not superblock.encrypted:
        context.output.line("This repository is not encrypted: it has no keys.")
        return
    rows = [
        (slot.slot, _kind(slot), slot.label or "-", slot.created, str(slot.generation), _remark(slot, table))
        for slot in table.slots
    ]
    context.output.table(["SLOT", "OPENED BY", "LABEL", "MADE", "GENERATION", "REMARK"], rows, right=["GENERATION"])
    for slot, error in table.unreadable.items():
        context.output.line(f"{slot}  unreadable: {error}", style="bad")


@key_app.command("change")
def change(
    slot: Annotated[
        str | None, typer.Option("--slot", metavar="SLOT", help="Replace this passphrase, not the one given.")
    ] = None,
    recovery_key: Annotated[bool, typer.Option("--recovery-key", help="Ask for the recovery key, not the passphrase.")] = False,
    new_passphrase_file: NewPassphraseFile = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """A new repository passphrase in place of the old one. Forgotten? --recovery-key, or --recovery-key-file FILE."""
    context = context_of(locals())
    with (
        _opened_by_recovery_key(context) if recovery_key and not recovery_key_file else opened(context) as (
            store,
            unlocked,
            mint,
        )
    ):
        replaces = _slot_of(keys.list_slots(store, unlocked.superblock), slot) if slot else None
        secret = new_secret(context, new_passphrase_file)
        with context.changing_keys(store, unlocked):
            made = keys.change_passphrase(store, unlocked, mint, secret, replaces=replaces)
    context.output.document({"slot": made.slot, "label": made.label})
    context.output.line(f"The new repository passphrase opens slot {made.slot}; the one before opens nothing any more.")


@key_app.command("add")
def add(
    label: Label = "",
    new_passphrase_file: NewPassphraseFile = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """One more repository passphrase, for somebody else or for a script."""
    context = context_of(locals())
    with opened(context) as (store, unlocked, mint):
        secret = new_secret(context, new_passphrase_file)
        with context.changing_keys(store, unlocked):
            made = keys.add_passphrase(store, unlocked, mint, secret, label=label)
    context.output.document({"slot": made.slot, "label": made.label})
    context.output.line(f"Slot {made.slot} is opened by the new passphrase. Those before go on opening theirs.")


@key_app.command("remove")
def remove(
    slot: Annotated[str, typer.Argument(metavar="SLOT", help="As `key list` shows it, or the beginning of it.")],
    force: Annotated[bool, typer.Option("--force", help="Even the last passphrase, or the last recovery key.")] = False,
    dry_run: DryRun = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove a passphrase or a recovery key. Somebody who knew it may have copied the slot: then `key rotate`."""
    context = context_of(locals())
    with opened(context) as (store, unlocked, _):
        chosen = _slot_of(keys.list_slots(store, unlocked.superblock), slot)
        if not dry_run:
            with context.changing_keys(store, unlocked):
                keys.remove_slot(store, unlocked, chosen, force=force)
    context.output.document({"removed": chosen, "dry_run": dry_run})
    context.output.line(f"Slot {chosen} would be removed (--dry-run)." if dry_run else f"Slot {chosen} is removed.")


@key_app.command("rotate")
def rotate(
    label: Label = "",
    also: Annotated[
        list[str] | None, typer.Option("--also", metavar="LABEL=FILE", help="A further passphrase that goes on opening it.")
    ] = None,
    new_passphrase_file: NewPassphraseFile = None,
    dry_run: DryRun = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """A new encryption key for all that is stored from now on, after a secret leaked. All other slots stop opening.

    Prints a new recovery key. What is stored already is not encrypted again: who copied it and knew the secret, can read it.
    """
    context = context_of(locals())
    wanted = dict(_label_and_file(item) for item in also or [])
    if label in wanted:
        raise WrongUsage(f'Two passphrases with the label "{label}".', safe="Nothing was changed.")
    with opened(context) as (store, unlocked, mint):
        before = keys.list_slots(store, unlocked.superblock)
        if dry_run:
            going = {slot.slot: slot.label for slot in before.slots}
            context.output.document({"dry_run": True, "dropped": going})
            for one, name in going.items():
                context.output.line(f'Slot {one} "{name}" would stop opening. Nothing was done (--dry-run).')
            return
        secrets = {
            label: new_secret(context, new_passphrase_file),
            **{name: read_secret(file) for name, file in wanted.items()},
        }
        with context.changing_keys(store, unlocked):
            rotated = keys.rotate(store, unlocked, mint, secrets)
    generation = rotated.unlocked.keyset.current
    context.output.document({"generation": generation, "recovery_key": rotated.recovery_key, "dropped": dict(rotated.dropped)})
    context.output.line(f"Key generation {generation}. {len(rotated.dropped)} older slots opened it before and do no more.")
    context.show_recovery_key(rotated.recovery_key)


@key_app.command("recovery")
def recovery(
    label: Label = "recovery key",
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """One more recovery key, shown once. Older ones go on opening until `key remove`."""
    context = context_of(locals())
    with opened(context) as (store, unlocked, mint), context.changing_keys(store, unlocked):
        slot, text = keys.add_recovery_key(store, unlocked, mint, label=label)
    context.output.document({"slot": slot.slot, "label": slot.label, "recovery_key": text})
    context.show_recovery_key(text)
    context.output.line(f"It opens slot {slot.slot}. Print the sheet for the safe: everywhen key sheet")


def new_secret(context: Context, path: str | None) -> str:
    """A new repository passphrase: from a file, or typed twice. Raises NotAllowed, WrongUsage."""
    if path:
        return read_secret(path)
    return typed_twice("new repository passphrase", of=f" for {context.opened_url}", instead="--new-passphrase-file FILE")


@contextmanager
def _opened_by_recovery_key(context: Context) -> Iterator[Opened]:
    if not sys.stdin.isatty():
        raise WrongUsage("There is no terminal to type the recovery key on.", do=["--recovery-key-file FILE"])
    store = context.store()
    with failing(context.opened_url):
        superblock = keys.read_superblock(store)
        typed = getpass.getpass(f"Recovery key of {context.opened_url}: ", stream=sys.stderr)
        surroundings = context.surroundings()
        yield Opened(store, keys.unlock(store, superblock, typed), Mint(surroundings.randomness, surroundings.clock()))


def _slot_of(table: SlotTable, wanted: str) -> str:
    fitting = sorted(slot for slot in table.ids if slot.startswith(wanted.lower()))
    if len(fitting) > 1:
        raise WrongUsage(
            f"{wanted} fits {len(fitting)} key slots: {', '.join(fitting)}.", on=wanted, safe="Nothing was changed."
        )
    if not fitting:
        raise NotFound(f"There is no key slot {wanted}.", on=wanted, safe="Nothing was changed.", do=["everywhen key list"])
    return fitting[0]


def _label_and_file(item: str) -> tuple[str, str]:
    label, equals, path = item.partition("=")
    if not equals or not label or not path:
        raise WrongUsage(f'"{item}" is not LABEL=FILE.', on=item, safe="Nothing was changed.")
    return label, path


def _kind(slot: KeySlot) -> str:
    return "repository passphrase" if slot.kind == PASSPHRASE else "recovery key"


def _remark(slot: KeySlot, table: SlotTable) -> str:
    return "outdated: does not open what was stored since; everywhen key rotate" if slot.generation < table.newest else ""


def _document(slot: KeySlot, table: SlotTable) -> dict[str, object]:
    return {
        "slot": slot.slot,
        "kind": slot.kind,
        "label": slot.label,
        "made": slot.created,
        "generation": slot.generation,
        "outdated": slot.generation < table.newest,
    }
