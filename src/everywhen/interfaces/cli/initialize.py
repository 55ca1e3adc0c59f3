# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen init`."""

from __future__ import annotations

from typing import Annotated

import typer

from everywhen.formats.ids import random_word
from everywhen.formats.superblock import SUPERBLOCK_NAME
from everywhen.interfaces.cli.app import RUN, AsJson, PassphraseFile, Quiet, app, context_of
from everywhen.repository.folders import FOLDERS
from everywhen.repository.keys.keys import Mint, create
from everywhen.repository.space import want_reserve
from everywhen.services.encrypted_before import forget_encrypted
from everywhen.services.failures import WrongUsage
from everywhen.services.translation import failing
from everywhen.storage.posix import PosixStore
from everywhen.storage.probe import probe_traits


@app.command("init", rich_help_panel=RUN)
def init(
    where: Annotated[str, typer.Argument(metavar="REPO", help="A path, or s3:// az:// gs://.")],
    encryption: Annotated[str, typer.Option("--encryption", help="aes-256-gcm, or none.")] = "aes-256-gcm",
    no_reserve: Annotated[bool, typer.Option("--no-reserve", help="Set no room aside for cleaning.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a repository. Prints the recovery key: keep it on paper, it is not shown again."""
    context = context_of({"repo": where, "passphrase_file": passphrase_file, "as_json": as_json, "quiet": quiet})
    if encryption not in ("aes-256-gcm", "none"):
        raise WrongUsage(f"--encryption {encryption}: aes-256-gcm or none.")
    store = context.store()
    surroundings = context.surroundings()
    with failing(where):
        beside = store.beside({SUPERBLOCK_NAME, *FOLDERS}) if isinstance(store, PosixStore) else []
        passphrase = context.new_passphrase() if encryption != "none" else None
        word = random_word(surroundings.randomness, 16)
        traits = probe_traits(store, f"probe/{word}")
        exclusive = traits.put_if_absent and traits.consistent_list
        mint = Mint(surroundings.randomness, surroundings.clock())
        created = create(store, mint, passphrase=passphrase, one_writer=not exclusive)
        if passphrase is None:
            forget_encrypted(context.state_folder(), store.url)
        context.recollect(store, created.unlocked.superblock)
        reserved = no_reserve or want_reserve(store)
    output = context.output
    superblock = created.unlocked.superblock
    output.document(
        {
            "repository": superblock.repository_id.hex(),
            "url": store.url,
            "encryption": superblock.encryption,
            "recovery_key": created.recovery_key,
            "several_writers": exclusive,
        }
    )
    output.line(f"Repository {superblock.repository_id.hex()[:8]} made at {store.url} (encryption: {superblock.encryption}).")
    if created.recovery_key:
        output.line()
        context.show_recovery_key(created.recovery_key)
    if beside:
        names = ", ".join(beside[:3]) + (", …" if len(beside) > 3 else "")
        output.warn(f"there is something else in {store.url} ({names}): it stays as it is; a folder of its own is safer")
    if not exclusive:
        output.warn("this store cannot keep two writers apart: backups, captures and gc take turns, or are refused as busy")
    if not reserved:
        output.warn("there is no room for the reserve (2 %, at least 256 MiB) that cleaning a full disk needs")
