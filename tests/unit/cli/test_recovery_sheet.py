# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sheet fits on one page; the pages of `help` are there, whole, and name only commands that exist."""

from __future__ import annotations

import os
import re

import pytest
import typer

from everywhen.interfaces.cli.app import app
from everywhen.interfaces.cli.help_topics import topics
from everywhen.interfaces.cli.main import load_commands
from everywhen.interfaces.cli.recovery_sheet import access, page
from everywhen.repository.keys.keys import Mint, create
from everywhen.storage.memory import MemoryStore
from everywhen.storage.open import variables

load_commands("--help")  # registers all of them

PHRASE = "correct horse"


@pytest.mark.parametrize("encrypted", [True, False])
def test_the_sheet_is_one_page(encrypted: bool) -> None:
    created = create(MemoryStore(), Mint(os.urandom, 0), passphrase=PHRASE if encrypted else None)
    text = page("/backup/everywhen", created.unlocked.superblock, created.recovery_key, "2026-11-21T10:32:05Z")
    lines = text.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 110
    assert created.unlocked.repository_id.hex() in text
    assert len(re.findall(r"^ [1-5]\. ", text, re.MULTILINE)) == 5
    if encrypted:
        assert str(created.recovery_key) in text
    else:
        assert "recovery-key-file" not in text
        assert "Recovery key" not in text


def test_without_a_key_there_is_room_to_write_it() -> None:
    created = create(MemoryStore(), Mint(os.urandom, 0), passphrase=PHRASE)
    assert "-".join(["______"] * 8) in page("/r", created.unlocked.superblock, None, "")


def test_an_object_store_is_reached_with_variables() -> None:
    """All that the program reads; those that are no secret with their values."""
    env = {"AWS_ENDPOINT_URL": "https://s3.example.org", "AWS_ACCESS_KEY_ID": "AK1", "AWS_SECRET_ACCESS_KEY": "hidden"}
    lines = access("s3://bucket/vms", env)
    assert "    export AWS_ENDPOINT_URL=https://s3.example.org" in lines
    assert "    export AWS_ACCESS_KEY_ID=AK1" in lines
    assert f"    export AWS_SECRET_ACCESS_KEY={'_' * 40}" in lines
    assert [line.strip() for line in access("az://c", {})[3:]] == [f"export {name}={'_' * 40}" for name in variables("az://c")]
    assert access("/srv/backups", env) == []
    created = create(MemoryStore(), Mint(os.urandom, 0), passphrase=PHRASE)
    page_ = page("s3://bucket/vms", created.unlocked.superblock, created.recovery_key, "2026-11-21T10:32:05Z", lines)
    assert len(page_.splitlines()) <= 60


def test_the_sheet_promises_no_package() -> None:
    created = create(MemoryStore(), Mint(os.urandom, 0), passphrase=PHRASE)
    text = page("/backup/everywhen", created.unlocked.superblock, created.recovery_key, "")
    assert "make setup" in text
    assert ".deb" not in text


def test_there_is_a_page_on_each_topic() -> None:
    assert set(topics()) >= {"moments", "capture", "restore", "retention", "keys", "exit-codes", "repository", "damage"}


def test_the_pages_name_only_commands_and_options_that_exist() -> None:
    root = typer.main.get_command(app)
    for name, text in topics().items():
        assert max(map(len, text.splitlines())) <= 98, name
        for line in re.findall(r"^ {4,}(?:[^ ].* )?(everywhen [a-z].*)", text, re.MULTILINE):
            command = root
            words = re.split(r"\s{3,}", line)[0].split()[1:]
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
            assert command is not root, f"{name}: {line}"
            known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
            used = {word for word in words if re.match(r"--\w", word)}
            assert used <= known, f"{name}: {line}"
