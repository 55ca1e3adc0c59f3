# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every command starts from: the options, the environment, and the repository they name."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from everywhen.formats.superblock import Superblock
from everywhen.interfaces.cli.output import Output
from everywhen.interfaces.cli.progress import Progress, Style, progress
from everywhen.repository.alone import alone_in_need, at_keys
from everywhen.repository.keys.keys import Unlocked, read_superblock, unlock
from everywhen.repository.presence import Holder
from everywhen.repository.repository import Repository, Surroundings
from everywhen.services.encrypted_before import note_encrypted, noted_encrypted
from everywhen.services.failures import NotAllowed, NotFound, WrongUsage
from everywhen.services.translation import failing
from everywhen.storage.base import ObjectStore
from everywhen.storage.open import open_store

_SYSTEM_STATE = Path("/var/lib/everywhen")
_LONGEST_SECRET = 1 << 16


@dataclass
class Context:
    """One run of the program."""

    output: Output
    env: Mapping[str, str]
    repo: str | None = None
    passphrase_file: str | None = None
    recovery_key_file: str | None = None
    progress_style: Style = "auto"
    opened_url: str = ""
    zone: tzinfo = field(default_factory=lambda: local_zone(os.environ))

    def repository_name(self) -> str:
        """How the user names the repository. Raises NotFound when nobody named one."""
        name = self.repo or self.env.get("EVERYWHEN_REPO")
        if not name:
            raise NotFound(
                "No repository is named.",
                do=["--repo PATH, or set EVERYWHEN_REPO", "Make one: everywhen init PATH"],
            )
        return name

    def store(self, name: str | None = None) -> ObjectStore:
        """The store of the repository. Raises Failure."""
        url = name or self.repository_name()
        self.opened_url = url
        with failing(url):
            return open_store(url, self.env)

    @contextmanager
    def repository(self, level: int = 1) -> Iterator[Repository]:
        """The repository, unlocked; closed at the end. Errors below become failures."""
        store = self.store()
        with failing(self.opened_url):
            unlocked = self.unlock(store)
            with Repository(store, unlocked, self.surroundings(), level) as repository:
                yield repository

    def unlock(self, store: ObjectStore) -> Unlocked:
        """Open the repository's keys with the secret at hand."""
        superblock = read_superblock(store)
        superblock.require("read")
        # One that is at hand is never left aside: whoever swaps the superblock could else make us write in the clear.
        secret = self.secret() if superblock.encrypted or self._secret_file() else None
        unlocked = unlock(store, superblock, secret)
        self.recollect(store, superblock)
        for slot in unlocked.outdated:
            self.output.warn(f"key slot {slot} is outdated or damaged: everywhen key list")
        return unlocked

    def recollect(self, store: ObjectStore, superblock: Superblock) -> None:
        """Compare what the superblock says of encryption with what it said here before. Raises NotAllowed."""
        state, identity = self.state_folder(), superblock.repository_id.hex()
        if superblock.encrypted:
            try:
                note_encrypted(state, store.url, identity)
            except OSError as error:
                if not self._secret_file():  # who gives one notices by that
                    self.output.warn(f"this computer cannot remember that {store.url} is encrypted ({error})")
            return
        note = noted_encrypted(state, store.url, identity)
        if note is not None:
            raise NotAllowed(
                f"{store.url} says that it is not encrypted, but it was when it was opened here before: somebody has replaced "
                "it, or its superblock.",
                on=store.url,
                safe="Nothing was read from it, and nothing written.",
                do=[f"If you made it anew yourself, without encryption: remove {note}"],
            )

    @contextmanager
    def changing_keys(self, store: ObjectStore, unlocked: Unlocked) -> Iterator[None]:
        """While keys are changed: in a turn of ours, where the store keeps no two writers apart. Raises Busy."""
        with alone_in_need(at_keys(store, unlocked, self.surroundings()), "key"):
            yield

    def secret(self) -> str:
        """Passphrase or recovery key: from a file, or typed in. Never from an argument. Raises NotAllowed."""
        path = self._secret_file()
        if path:
            return read_secret(path)
        if not sys.stdin.isatty():
            raise NotAllowed(
                "A repository passphrase is needed, and there is no terminal to ask on.",
                do=["--passphrase-file FILE, or set EVERYWHEN_PASSPHRASE_FILE"],
            )
        return getpass.getpass(f"Repository passphrase for {self.opened_url}: ", stream=sys.stderr)

    def _secret_file(self) -> str | None:
        return self.recovery_key_file or self.passphrase_file or self.env.get("EVERYWHEN_PASSPHRASE_FILE")

    def new_passphrase(self) -> str:
        """A passphrase for a new slot, typed twice or read from a file. Raises NotAllowed, WrongUsage."""
        path = self.passphrase_file or self.env.get("EVERYWHEN_PASSPHRASE_FILE")
        if path:
            return read_secret(path)
        instead = "--passphrase-file FILE, or set EVERYWHEN_PASSPHRASE_FILE"
        return typed_twice("new repository passphrase", instead=instead, safe="Nothing was made.")

    def show_recovery_key(self, text: str) -> None:
        """A new one, which nobody keeps."""
        self.output.once("Recovery key, shown only now. It opens the repository when the passphrase is lost:")
        self.output.once()
        self.output.once(f"    {text}")
        self.output.once()

    def surroundings(self) -> Surroundings:
        """Clock, randomness, who we are, and where caches lie."""
        cache = self.env.get("EVERYWHEN_CACHE") or os.path.join(
            self.env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "everywhen"
        )
        return Surroundings(time.time_ns, secrets.token_bytes, holder(), Path(cache))

    def state(self, vm: str) -> Path:
        """The folder of a VM's capture on this host: spool and sockets."""
        return self.state_folder() / vm

    def state_folder(self) -> Path:
        """Where the folders of all captures on this host are."""
        given = self.env.get("EVERYWHEN_STATE")
        home = Path(self.env.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")) / "everywhen"
        # Hypervisors have working folders of their own: what they are given is absolute.
        return (Path(given) if given else _SYSTEM_STATE if os.access(_SYSTEM_STATE.parent, os.W_OK) else home).absolute()

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """Show progress on standard error."""
        with progress(self.output, title, clock=time.monotonic, style=self.progress_style) as job:
            yield job


def holder() -> Holder:
    """This process, for sessions, leases and locks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        pids = os.readlink("/proc/self/ns/pid")
    except OSError:
        pids = ""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    return Holder(socket.gethostname(), boot, os.getpid(), user, pids)


def read_secret(path: str, what: str = "passphrase") -> str:
    """The first line of a file, or of a pipe; `what` it is, for messages. Raises NotAllowed."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LONGEST_SECRET + 1)  # a device in its place may have no end
        lines = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NotAllowed(f"{path}: the {what} file cannot be read ({error}).", on=path) from error
    if len(content) > _LONGEST_SECRET:
        raise NotAllowed(f"{path} has more than {_LONGEST_SECRET} bytes: that is no {what} file.", on=path)
    if not lines or not lines[0]:
        raise NotAllowed(f"{path}: the {what} file is empty.", on=path)
    return lines[0]


def typed_twice(what: str, *, of: str = "", instead: str, safe: str = "Nothing was changed.") -> str:
    """A new secret from the terminal: `what`, `of` whom; `instead`: what to do without a terminal. Raises WrongUsage."""
    if not sys.stdin.isatty():
        raise WrongUsage(f"A {what} is needed, and there is no terminal to ask on.", safe=safe, do=[instead])
    first = getpass.getpass(f"{what.capitalize()}{of}: ", stream=sys.stderr)
    if getpass.getpass("The same again: ", stream=sys.stderr) != first:
        raise WrongUsage("What was typed the second time differs.", safe=safe)
    return first


def local_zone(env: Mapping[str, str]) -> tzinfo:
    """The terminal's time zone with its rules, not only today's offset: TZ, then /etc/localtime."""
    name = env.get("TZ", "").lstrip(":")
    try:
        if name:
            return ZoneInfo(name)
        with Path("/etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file, key="local")
    except (OSError, ValueError, KeyError):  # as `UTC0`, which the C library understands: by its offset of today then
        return datetime.now().astimezone().tzinfo or UTC
