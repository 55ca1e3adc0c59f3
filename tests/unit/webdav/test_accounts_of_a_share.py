# SPDX-License-Identifier: AGPL-3.0-or-later
"""Accounts in a file, and what addresses from which wrong logins come have to bear."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from everywhen.interfaces.webdav import accounts as accounts_of_a_share
from everywhen.interfaces.webdav.accounts import Accounts, put_account
from everywhen.interfaces.webdav.attempts import FREE, Attempts
from everywhen.interfaces.webdav.gate import Gate, Refused
from everywhen.services.failures import NotAllowed, NotFound, WrongUsage

SECRET = bytes(32)
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""Those that the program makes take a tenth of a second each."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(accounts_of_a_share, "_HASHER", QUICK)
    accounts_of_a_share._nobody.cache_clear()
    return "ann:" + QUICK.hash("secret: of Ann's") + "\n"


@pytest.fixture
def path(made: str, tmp_path: Path) -> str:
    file = tmp_path / "accounts"
    file.write_text(f"# of the office\n\n{made}")
    return str(file)


def test_a_login_password(path: str) -> None:
    accounts = Accounts(path, SECRET)
    assert not accounts.known("ann", "secret: of Ann's")
    assert accounts.verify("ann", "secret: of Ann's")
    assert accounts.known("ann", "secret: of Ann's")
    for name, password in (("ann", "secret"), ("ann", ""), ("bob", "secret: of Ann's"), ("bob", ""), ("", "")):
        assert not accounts.verify(name, password)
        assert not accounts.known(name, password)


def test_a_change_of_the_file_holds_at_once(path: str) -> None:
    accounts = Accounts(path, SECRET)
    assert accounts.verify("ann", "secret: of Ann's")
    assert put_account(path, "ann", "another")
    assert not put_account(path, "bob", "bob's")
    text = Path(path).read_text()
    assert text.startswith("# of the office\n\nann:$argon2id$")
    assert "bob's" not in text
    assert not accounts.known("ann", "secret: of Ann's")
    assert accounts.verify("bob", "bob's")
    Path(path).unlink()
    with pytest.raises(NotFound):
        accounts.known("bob", "bob's")


def test_a_file_of_accounts_is_its_owners(tmp_path: Path, made: str) -> None:
    path = tmp_path / "new"
    put_account(str(path), "ann", "x")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    put_account(str(path), "bob", "x")
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["new"]
    path.chmod(0o666)
    with pytest.raises(NotAllowed, match="everybody"):
        Accounts(str(path), SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ann\n",
        "ann:secret\n",
        "ann:$2y$05$abcdefghijklmnopqrstuv\n",
        "a b:{}",
        "{}{}",
        ":$argon2id$v=19$m=65536,t=3,p=4$AA$AA\n",
    ],
)
def test_what_is_no_file_of_accounts_lets_nobody_in_and_is_not_written_over(text: str, made: str, tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text(text.replace("{}", made))
    with pytest.raises(WrongUsage):
        Accounts(str(path), SECRET)
    if text:
        with pytest.raises(WrongUsage):
            put_account(str(path), "bob", "x")
        assert path.read_text() == text.replace("{}", made)


@pytest.mark.parametrize("name", ["", "a:b", "a b", "#a", "a\nb", "a" * 65])
def test_names_that_no_account_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUsage):
        put_account(str(tmp_path / "accounts"), name, "x")
    assert os.listdir(tmp_path) == []


def test_who_fails_often_has_to_wait_longer_each_time() -> None:
    now = [100.0]
    attempts = Attempts(lambda: now[0])
    waits = [attempts.failed("192.0.2.1") for _ in range(FREE + 10)]
    assert waits == [*[0.0] * (FREE - 1), 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]
    assert attempts.wait_s("192.0.2.2") == 0
    now[0] += 299.0
    assert attempts.wait_s("192.0.2.1") == 1.0
    now[0] += 1.0
    assert attempts.wait_s("192.0.2.1") == 0
    now[0] += 3601.0
    assert attempts.failed("192.0.2.1") == 0, "an hour later it is forgotten"


def test_one_network_is_one_address() -> None:
    attempts = Attempts(lambda: 0.0)
    for number in range(FREE):
        attempts.failed(f"2001:db8::{number}")
        attempts.failed(f"::ffff:192.0.2.{number}")
    assert attempts.wait_s("2001:db8::ffff") > 0
    assert attempts.wait_s("2001:db8:0:1::1") == 0
    assert attempts.wait_s("192.0.2.1") == 0
    attempts.succeeded("2001:db8::7")
    assert attempts.wait_s("2001:db8::ffff") == 0


def basic(name: str, password: str, encoding: str = "utf-8") -> dict[str, str]:
    credentials = base64.b64encode(f"{name}:{password}".encode(encoding)).decode()
    return {"REMOTE_ADDR": "192.0.2.1", "HTTP_AUTHORIZATION": f"Basic {credentials}"}


def refused(gate: Gate, environ: dict[str, str]) -> int:
    with pytest.raises(Refused) as error:
        gate.enter(environ)
    return int(error.value.status)


def test_the_gate(path: str) -> None:
    said: list[str] = []
    now = [0.0]
    gate = Gate(Accounts(path, SECRET), Attempts(lambda: now[0]), by_name=True, say=said.append)
    right = basic("ann", "secret: of Ann's")
    assert gate.enter(right) == "ann"
    for header in ("", "Basic", "Basic !", "Basic YW5u", "Digest username=ann", "Bearer x"):
        assert refused(gate, {"REMOTE_ADDR": "192.0.2.1", "HTTP_AUTHORIZATION": header}) == 401
    for _ in range(FREE):
        assert refused(gate, basic("ann", "wrong")) == 401
    assert refused(gate, right) == 429, "else who tries would learn which one is right"
    assert said == [f"192.0.2.1: more than {FREE - 1} wrong logins, the last one as ann; 1 s until the next."]
    now[0] += 1.0
    assert gate.enter(right) == "ann"


def test_logins_of_older_clients(path: str) -> None:
    put_account(path, "jörg", "grüße")
    gate = Gate(Accounts(path, SECRET), Attempts(lambda: 0.0), by_name=True, say=print)
    for encoding in ("utf-8", "latin-1"):
        assert gate.enter(basic("jörg", "grüße", encoding)) == "jörg"


def test_without_accounts_pages_from_elsewhere_do_not_get_in() -> None:
    gate = Gate(None, Attempts(lambda: 0.0), by_name=False, say=print)
    for host in ("localhost", "localhost:8080", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "[::1]", "LOCALHOST:1"):
        assert gate.enter({"HTTP_HOST": host}) == ""
    for host in (
        "",
        "evil.example",
        "evil.example:8080",
        "192.0.2.1:8080",
        "localhost.evil.example",
        "[::2]:80",
        "127.0.0.1.evil",
    ):
        assert refused(gate, {"HTTP_HOST": host}) == 421


def test_a_hash_is_of_the_kind_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    put_account(str(path), "ann", "secret")
    assert "$argon2id$v=19$m=65536,t=3,p=4$" in path.read_text()
