# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Annotated

import typer

from everywhen.block.image import Image
from everywhen.block.open_image import open_image
from everywhen.interfaces.cli.app import (
    KEEP,
    AsJson,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.context import Context, read_secret
from everywhen.interfaces.cli.named_values import pairs
from everywhen.repository.keys.keys import read_superblock, unlock
from everywhen.repository.repository import Repository
from everywhen.repository.verify.repair_sources import DeviceSource, Source
from everywhen.repository.verify.verify import Watching
from everywhen.services.ages import SECOND, span
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Exit, NotFound, WrongUsage
from everywhen.services.sizes import size
from everywhen.services.translation import failing
from everywhen.services.verification import (
    ImageArgument,
    Verified,
    document,
    family_source,
    lines,
    parse_source,
    verify_repository,
)
from everywhen.storage.open import open_store


@app.command("verify", rich_help_panel=KEEP)
def verify(
    read_data: Annotated[bool, typer.Option("--read-data", help="Read, decrypt and hash everything that is stored.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Write second copies again, mend what can be mended.")] = False,
    repair_from: Annotated[
        list[str] | None,
        typer.Option(
            "--repair-from",
            metavar="SOURCE",
            help="Store lost chunks anew from a copy or replica (path or URL), or from VM/DISK=IMAGE. Repeatable.",
        ),
    ] = None,
    source_passphrase_file: Annotated[
        str | None, typer.Option("--source-passphrase-file", help="For a source whose passphrase is another one.")
    ] = None,
    image_format: Annotated[
        list[str] | None,
        typer.Option("--image-format", metavar="VM/DISK=FORMAT", help="Of such an image, instead of detecting it."),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Follow such images' parents and data files outside their folders.")
    ] = False,
    give_up: Annotated[
        list[str] | None,
        typer.Option(
            "--give-up",
            metavar="OBJECT",
            help="With --repair: remove a document of which neither copy can be read. Repeatable.",
        ),
    ] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """What is damaged, and which moments lose what by it. Exit code 3: damage stands that was not repaired."""
    context = context_of(locals())
    if give_up and not repair:
        raise WrongUsage("--give-up removes what it names: it needs --repair.", on=give_up[0])
    formats = pairs(image_format or [], "VM/DISK=FORMAT")
    given = [parse_source(text) for text in repair_from or []]
    named = {f"{source.vm}/{source.disk}" for source in given if isinstance(source, ImageArgument)}
    if unknown := sorted(formats.keys() - named):
        raise WrongUsage(f"{unknown[0]} is not among the images of --repair-from.", on=unknown[0])

    def opening(source: ImageArgument) -> Image:
        return open_image(source.path, format=formats.get(f"{source.vm}/{source.disk}"), allow_outside=allow_outside)

    with context.repository() as repository, context.progress("reading" if read_data else "verify") as job:

        def read(done: int, total: int) -> None:
            job.report(done, total)

        def step(what: str, done: int, total: int | None) -> None:
            # Reading is shown in bytes; the steps around it are short beside it.
            if not read_data:
                job.step(what, done, total)

        def sources() -> AbstractContextManager[list[Source]]:
            return _sources(context, repository, given, source_passphrase_file, opening)

        wanted: Callable[[], AbstractContextManager[list[Source]]] | None = sources if repair or given else None
        verified = verify_repository(
            repository, Watching(read, step), read_data=read_data, sources=wanted, give_up=give_up or []
        )
    context.output.document(document(verified, read_data=read_data))
    for text in lines(verified.verdict, context.zone):
        context.output.line(text)
    _ending(context, verified, read_data=read_data)
    return Exit.DAMAGED if verified.verdict.damaged else None


def _ending(context: Context, verified: Verified, *, read_data: bool) -> None:
    verdict, repaired, output = verified.verdict, verified.repaired, context.output
    how = "known" if not read_data else "read and hashed"
    rate = f", {size(round(verdict.bytes_read / verified.seconds))}/s" if read_data and verified.seconds else ""
    taken = span(round(verified.seconds * SECOND))
    output.line(
        f"{verdict.points:,} moments, {verdict.packs:,} packs, {verdict.chunks:,} chunks {how}"
        + (f", {size(verdict.bytes_read)} in {taken}{rate}" if read_data else f", {taken}")
    )
    if repaired is not None:
        chunks = "".join(f", {count:,} chunks stored anew from {name}" for name, count in repaired.chunks.items())
        output.line(f"Repaired: {repaired.objects:,} objects{chunks}.")
    if not verdict.findings:
        output.line("No damage found." if read_data else "No damage found. (What chunks hold is read only with --read-data.)")
    elif not verdict.damaged:
        output.line("Nothing is left to repair.")
    else:
        if verdict.noted:
            output.line(
                "Damaged copies are noted: nothing new relies on them, and the next backup of the same content heals it."
            )
        if repaired is None:
            output.line(
                "Repair: everywhen verify --repair, or --repair-from a replica, a copy, or VM/DISK=IMAGE (an unchanged disk)"
            )
        else:
            output.line("What is still marked DAMAGED could not be repaired from what was given.")
    if not verdict.noted:
        output.warn("the repository cannot be written: what was found is not noted in it")
    for text in verdict.notes:
        output.note(text)


@contextmanager
def _sources(
    context: Context,
    repository: Repository,
    given: list[ImageArgument | str],
    passphrase_file: str | None,
    opening: Callable[[ImageArgument], Image],
) -> Iterator[list[Source]]:
    """Open the sources. Raises Failure."""
    with ExitStack() as opened:
        found: list[Source] = []
        for source in given:
            if isinstance(source, ImageArgument):
                found.append(_image(repository, source, opening, opened))
            else:
                other = opened.enter_context(_repository(context, source, passphrase_file))
                found.append(family_source(source, repository, other))
        yield found


def _image(
    repository: Repository, source: ImageArgument, opening: Callable[[ImageArgument], Image], opened: ExitStack
) -> DeviceSource:
    catalog = read_catalog(repository)
    vm = catalog.vm(source.vm)
    if not any(source.disk in point.disks for point in catalog.points_of(vm)):
        raise NotFound(f"{vm.name} never had a disk {source.disk}.", on=f"{source.vm}/{source.disk}")
    image = opening(source)
    opened.callback(image.close)
    return DeviceSource(source.path, image, repository.codec)


@contextmanager
def _repository(context: Context, where: str, passphrase_file: str | None) -> Iterator[Repository]:
    with failing(where):
        store = open_store(where, context.env)
        superblock = read_superblock(store)
        superblock.require("read")
        secret = None
        if superblock.encrypted:
            secret = read_secret(passphrase_file) if passphrase_file else context.secret()
        elif passphrase_file:
            raise WrongUsage(f"{where} is not encrypted: leave --source-passphrase-file out.", on=where)
        # A copy of a repository has its id: it must not share the cache of the one that is being repaired.
        surroundings = context.surroundings()
        apart = dataclasses.replace(surroundings, cache=surroundings.cache / "sources")
        with Repository(store, unlock(store, superblock, secret), apart) as repository:
            yield repository
