# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen key sheet`: one page for the safe. What brings everything back when this computer is gone (ux R17)."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from everywhen.formats.cleartext import rfc3339
from everywhen.formats.keyslot import RECOVERY
from everywhen.formats.superblock import Superblock
from everywhen.interfaces.cli.app import AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, context_of
from everywhen.interfaces.cli.context import Context, read_secret
from everywhen.repository.keys import keys
from everywhen.repository.keys.keys import Mint
from everywhen.services.failures import Failed, WrongUsage
from everywhen.services.translation import failing
from everywhen.storage.base import ObjectStore
from everywhen.storage.open import variables

_BLANK = "-".join(["______"] * 8)
_COMMANDS = (
    ("In its source, of which a copy belongs beside this sheet (on Debian; it makes .venv/bin/everywhen)", "make setup"),
    (
        "Look whether all is there (type the recovery key into a file first)",
        "everywhen status --repo {url} --recovery-key-file key.txt",
    ),
    ("See the moments", "everywhen points --repo {url} --recovery-key-file key.txt"),
    ("Get the disks of a VM back", "everywhen restore VM@latest --to DIR --repo {url} --recovery-key-file key.txt"),
    ("Set a new repository passphrase", "everywhen key change --repo {url} --recovery-key-file key.txt"),
)


def sheet(
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Write it there (only you can read it).")] = None,
    new_recovery_key: Annotated[
        bool, typer.Option("--new-recovery-key", help="Make one more recovery key, and print that.")
    ] = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The recovery sheet: one page to print and lock away. The recovery key on it is the one you give (it is tried first).

    From --recovery-key-file, or typed in; without either, its place is left empty, to be filled in by hand.
    """
    context = context_of(locals())
    if new_recovery_key and recovery_key_file:
        raise WrongUsage("--new-recovery-key and --recovery-key-file exclude one another: one key stands on the sheet.")
    store = context.store()
    with failing(context.opened_url):
        superblock = keys.read_superblock(store)
        key = _recovery_key(context, store, superblock, new=new_recovery_key) if superblock.encrypted else None
        made = rfc3339(context.surroundings().clock())
    text = page(store.url, superblock, key, made, access(store.url, context.env))
    context.output.document(
        {
            "repository": superblock.repository_id.hex(),
            "url": store.url,
            "recovery_key": key,
            "out": out,
            "sheet": None if out else text,
        }
    )
    if out is None:
        for line in text.splitlines():
            context.output.once(line)
        return
    _write(out, text)
    context.output.line(f"The sheet is in {out}. Print it, lock it away, and delete the file.")


def page(url: str, superblock: Superblock, recovery_key: str | None, made: str, access: Sequence[str] = ()) -> str:
    """The text of the sheet: under 60 lines of 100 characters. `recovery_key` None: room to write it in; `access`: lines about
    how the store is reached."""
    identity = superblock.repository_id.hex()
    if superblock.encrypted:
        secret = ["Recovery key", "", f"    {recovery_key or _BLANK}", ""]
        secret += ["It opens the repository when the repository passphrase is lost. It is not a login password and not a"]
        secret += ["token. Case, blanks and dashes do not matter when it is typed. Whoever reads it can read every backup."]
    else:
        secret = ["This repository is not encrypted: no key is needed, and whoever has the medium can read every backup."]
    steps = []
    for number, (what, command) in enumerate(_COMMANDS, 1):
        shown = command.format(url=url)
        if not superblock.encrypted:
            shown = shown.replace(" --recovery-key-file key.txt", "")
        steps += [f" {number}. {what}:", f"      {shown}", ""]
    lines = [
        "EVERYWHEN RECOVERY SHEET",
        "=" * 24,
        "",
        f"Repository   {identity}",
        f"Where        {url}",
        f"Made         {superblock.created}, this sheet {made}",
        f"Encryption   {superblock.encryption}",
        *access,
        "",
        "Other copies of it (replicas, drives; write them in):",
        "",
        "    ______________________________________________________________",
        "",
        "    ______________________________________________________________",
        "",
        *secret,
        "",
        "On any Linux computer these five bring everything back:",
        "",
        *steps,
        "The program keeps no secret anywhere else: without repository passphrase and recovery key nobody can",
        "open the backups, its makers neither.",
    ]
    return "\n".join(lines) + "\n"


def access(url: str, env: Mapping[str, str]) -> list[str]:
    """What an object store needs beside the URL: what is set and no secret as it is, room for the rest."""
    named = variables(url)
    if not named:
        return []
    values = {name: "" if secret else env.get(name, "") for name, secret in named.items()}
    shown = [f"    export {name}={value or '_' * 40}" for name, value in values.items()]
    return ["", "It is reached with these (where a value was needed that is not here, write it in):", "", *shown]


def _recovery_key(context: Context, store: ObjectStore, superblock: Superblock, *, new: bool) -> str | None:
    """The key to print: made, read from the file, typed in, or none. One that does not open is refused."""
    if new:
        unlocked = context.unlock(store)
        surroundings = context.surroundings()
        with context.changing_keys(store, unlocked):
            return keys.add_recovery_key(store, unlocked, Mint(surroundings.randomness, surroundings.clock()))[1]
    if context.recovery_key_file:
        typed = read_secret(context.recovery_key_file)
    elif sys.stdin.isatty():
        prompt = "Recovery key to print (nothing: leave room for it): "
        typed = getpass.getpass(prompt, stream=sys.stderr).strip()
    else:
        typed = ""
    if not typed:
        return None
    slot = keys.unlock(store, superblock, typed).slot
    if slot is None or slot.kind != RECOVERY:
        raise WrongUsage(
            "That opens the repository, but it is a repository passphrase, not a recovery key.",
            safe="Nothing was written.",
            do=["Make a new recovery key: everywhen key sheet --new-recovery-key"],
        )
    return typed.upper()


def _write(path: str, text: str) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise Failed(f"{path} exists. Nothing was written.", on=path, do=["Choose another name."]) from error
    with os.fdopen(file, "w", encoding="utf-8") as stream:
        stream.write(text)
