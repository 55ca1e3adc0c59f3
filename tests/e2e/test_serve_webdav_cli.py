# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen serve webdav` as it is typed: the clients that people use, and those that nobody wants."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from everywhen.interfaces.webdav.server import PATIENCE_S, THREADS
from everywhen.storage.posix import PosixStore
from tests import damage_recipes as broken
from tests.certificates import Authority
from tests.long_forms import in_soak
from tests.program import Program, ended

MIB = 1 << 20
LATEST = "web1/@latest"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository, the guest's files in `guest`, and its disk as it was in `web1.raw`."""
    folder = tmp_path_factory.mktemp("made")
    guest = folder / "guest"
    for below in ("etc", "usr/bin", "home/a:b"):
        (guest / below).mkdir(parents=True)
    (guest / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    (guest / "home/large").write_bytes(random.Random(4).randbytes(5 * MIB))
    (guest / "home/a:b/<script>").write_text("hostile\n")
    (guest / "usr/bin/bash").write_text("a shell\n")
    (guest / "usr/bin/X11").symlink_to(".")
    (guest / "bin").symlink_to("usr/bin")
    image = folder / "web1.raw"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-d", guest, image], check=True, env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"})
    program = Program(folder).init()
    program.backup("web1", f"vda={image}")
    return folder


class Share:
    """A share that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        out = process.stdout
        assert out is not None
        text = "".join(takewhile(lambda line: line != "}\n", out))
        assert text, ended(process)
        self.url: str = json.loads(text + "}")["url"]
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        self.address = (parts.hostname, parts.port)

    def ask(self, method: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        """An answer that has come as a whole."""
        with closing(http.client.HTTPConnection(*self.address, timeout=60)) as connection:
            connection.request(method, f"/{path}", headers=headers)
            answer = connection.getresponse()
            with closing(answer):
                return answer, answer.read()


@contextmanager
def shared(folder: Path, *arguments: str | Path) -> Iterator[Share]:
    process = Program(folder).start("serve", "webdav", "--listen", "127.0.0.1:0", "--json", *arguments)
    try:
        yield Share(process)
    finally:
        process.kill()
        process.communicate()


def run(*command: str | Path, stdin: str = "", **environment: str) -> str:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "RCLONE_CONFIG": os.devnull, **environment}
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module")
def share(made: Path) -> Iterator[Share]:
    """One for all that only look; it has nothing to say, and ends well."""
    with shared(made) as running:
        yield running
        running.process.send_signal(signal.SIGINT)
        done = ended(running.process)
    assert (done.code, done.err) == (0, "")
    assert Program(made).ok("sessions") == []


def test_clients_that_people_use(made: Path, share: Share, tmp_path: Path) -> None:
    guest = made / "guest"
    remote = {"RCLONE_WEBDAV_URL": share.url, "RCLONE_WEBDAV_VENDOR": "other"}
    run("rclone", "copy", f":webdav:{LATEST}/files", tmp_path / "got", **remote)
    copied = {str(path.relative_to(tmp_path / "got")) for path in (tmp_path / "got").rglob("*") if path.is_file()}
    assert copied == {"etc/fstab", "home/large", "home/a%3Ab/%3Cscript%3E", "usr/bin/bash"}
    assert (tmp_path / "got/home/large").read_bytes() == (guest / "home/large").read_bytes()
    assert (tmp_path / "got/etc/fstab").stat().st_mtime == int((guest / "etc/fstab").stat().st_mtime)
    assert run("rclone", "cat", f":webdav:{LATEST}/files/bin/bash", **remote) == "a shell\n"
    run("rclone", "copyto", f":webdav:{LATEST}/disk/vda.raw", tmp_path / "vda.raw", **remote)
    assert (tmp_path / "vda.raw").read_bytes() == (made / "web1.raw").read_bytes()
    said = run("cadaver", share.url, stdin=f"cd {LATEST}/files/home\nls\nget large {tmp_path / 'large'}\nput /etc/hostname x\n")
    assert "a%3Ab" in said
    assert (tmp_path / "large").read_bytes() == (guest / "home/large").read_bytes()
    assert "405" in said
    listed = [(one["what"], one["pid"]) for one in Program(made).ok("sessions")]
    assert listed == [(f"serve webdav {share.url}", share.process.pid), ("serve webdav web1", share.process.pid)]


@in_soak
@pytest.mark.skipif(os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK), reason="root mounts it, with /dev/fuse")
def test_davfs2(made: Path, share: Share, tmp_path: Path) -> None:
    """With `buf_size 64`: from Linux 6.16 on it lists nothing of any server without."""
    tool = shutil.which("mount.davfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if tool is None:
        pytest.skip("davfs2 is not installed")
    folder, settings = tmp_path / "mounted", tmp_path / "davfs2.conf"
    folder.mkdir()
    settings.write_text("use_locks 0\nask_auth 0\nbuf_size 64\n")
    subprocess.run([tool, share.url, folder, "-o", f"ro,conf={settings}"], check=True, capture_output=True, timeout=60)
    try:
        home = folder / LATEST / "files/home"
        assert sorted(os.listdir(home)) == ["a%3Ab", "large"]
        assert (home / "large").read_bytes() == (made / "guest/home/large").read_bytes()
        assert (home / "a%3Ab/%3Cscript%3E").read_text() == "hostile\n"
        with pytest.raises(OSError, match="Read-only file system"):
            (home / "new").touch()
    finally:
        subprocess.run(["umount", folder], check=True, capture_output=True, timeout=60)
        for left in Path("/var/cache/davfs2").glob(f"*+{str(folder)[1:].replace('/', '-')}+root"):
            shutil.rmtree(left)


def test_any_part_of_a_disk_and_pages_for_browsers(made: Path, share: Share) -> None:
    content = (made / "web1.raw").read_bytes()
    raw = f"{LATEST}/disk/vda.raw"
    part, body = share.ask("GET", raw, Range=f"bytes={4 * MIB - 5}-{4 * MIB + 5}")
    assert (part.status, body) == (206, content[4 * MIB - 5 : 4 * MIB + 6])
    head, _ = share.ask("HEAD", raw)
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(content)))
    assert head.headers["ETag"] == part.headers["ETag"]
    assert share.ask("GET", raw, **{"If-None-Match": head.headers["ETag"]})[0].status == 304
    page, text = share.ask("GET", f"{LATEST}/files/home/a%253Ab/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"<script" not in text
    assert b">%3Cscript%3E</a>" in text
    assert share.ask("PROPFIND", "", Depth="infinity")[0].status == 403
    assert share.ask("PROPFIND", "web1/", Depth="1")[0].status == 207
    assert share.ask("GET", "web1/@-1000d/")[0].status == 404
    assert share.ask("GET", "", Host="evil.example")[0].status == 421


def test_accounts_and_tls(made: Path, tmp_path: Path) -> None:
    program = Program(made)
    authority = Authority(tmp_path / "tls")
    authority.sign("server")
    accounts, secret = tmp_path / "accounts", tmp_path / "secret"
    secret.write_text("Ann's own\n")
    assert program.ok("serve", "account", "ann", "--accounts", accounts, "--login-password-file", secret)["replaced"] is False
    assert program.run("serve", "account", "bob", "--accounts", accounts).code == 2, "no terminal to ask on"
    tls = ("--tls-cert", authority.folder / "server-cert.pem", "--tls-key", authority.folder / "server-key.pem")
    with shared(made, "--accounts", accounts, *tls) as share, ExitStack() as stack:
        for _ in range(2 * THREADS):
            stack.enter_context(closing(socket.create_connection(share.address)))  # and says nothing
        plain = stack.enter_context(closing(socket.create_connection(share.address)))
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"200" not in plain.recv(1000)
        obscured = run("rclone", "obscure", "Ann's own").strip()
        remote = {"RCLONE_WEBDAV_URL": share.url, "RCLONE_WEBDAV_USER": "ann", "RCLONE_WEBDAV_PASS": obscured}
        ca = ("--ca-cert", authority.folder / "ca-cert.pem")
        assert run("rclone", "cat", *ca, f":webdav:{LATEST}/files/etc/fstab", **remote).startswith("/dev/vda")
        context = ssl.create_default_context(cafile=str(authority.folder / "ca-cert.pem"))
        connection = stack.enter_context(closing(http.client.HTTPSConnection(*share.address, context=context, timeout=60)))
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (401, b"Unauthorized\n")
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        share.process.send_signal(signal.SIGTERM)
        assert ended(share.process).code == 0


def test_a_unix_socket_and_what_a_service_manager_is_told(made: Path, tmp_path: Path) -> None:
    address, manager = tmp_path / "dav sock", tmp_path / "manager"
    program = Program(made, more={"NOTIFY_SOCKET": str(manager)})
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as told:
        told.bind(str(manager))
        told.settimeout(60)
        process = program.start("serve", "webdav", "--socket", address)
        try:
            url = f"http+unix://{quote(str(address), safe='')}/"
            assert told.recv(1000).decode().splitlines() == ["READY=1", f"STATUS=Serving at {url}"]
            assert process.stdout is not None
            assert process.stdout.readline() == f"Ready: {url}\n"
            assert stat.S_IMODE(address.stat().st_mode) == 0o600
            asked = ("curl", "-sf", "--unix-socket", address, f"http://anything/{LATEST}/files/etc/fstab")
            assert run(*asked).startswith("/dev/vda")
            process.send_signal(signal.SIGTERM)
            assert ended(process).code == 0
        finally:
            process.kill()
            process.communicate()
    assert not address.exists()


def test_clients_with_certificates_alone(made: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    for role in ("server", "client"):
        authority.sign(role)
    ca, cert, key, own, own_key = (
        authority.folder / f"{name}.pem" for name in ("ca-cert", "server-cert", "server-key", "client-cert", "client-key")
    )
    tls = ("--tls-cert", cert, "--tls-key", key, "--tls-clients", ca)
    with shared(made, *tls) as share:
        known = ssl.create_default_context(cafile=str(ca))
        with closing(http.client.HTTPSConnection(*share.address, context=known, timeout=60)) as stranger:
            with suppress(OSError):  # that it is refused may be known before all of it is asked
                stranger.request("GET", "/")
            with pytest.raises((OSError, http.client.HTTPException)):
                stranger.getresponse()
        known.load_cert_chain(own, own_key)
        with closing(http.client.HTTPSConnection(*share.address, context=known, timeout=60)) as connection:
            connection.request("GET", f"/{LATEST}/files/etc/fstab")
            answer = connection.getresponse()
            assert (answer.status, answer.read()[:8]) == (200, b"/dev/vda")


def test_what_others_could_reach_is_not_served_without_proof(made: Path, tmp_path: Path) -> None:
    program = Program(made)
    accounts = tmp_path / "accounts"
    missing = program.run("serve", "webdav", "--listen", "127.0.0.1:0", "--accounts", accounts)
    assert (missing.code, "There is no file of accounts" in missing.err) == (6, True)
    accounts.write_text("ann:secret\n")
    assert program.run("serve", "webdav", "--listen", "127.0.0.1:0", "--accounts", accounts).code == 2
    refused = program.run("serve", "webdav", "--listen", "0.0.0.0:0", "--json")
    assert refused.code == 7
    assert refused.error["do"][0].startswith("With accounts and TLS: ")
    assert program.run("serve", "webdav").code == 2


def test_a_damaged_block_ends_the_connection(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "repo", tmp_path / "repo")
    store = PosixStore(str(tmp_path / "repo"))
    pack = max(store.list("packs/"), key=lambda found: found.size)
    broken.flip(store, pack.name, pack.size // 2)
    with shared(tmp_path) as share:
        for _ in range(2):
            with pytest.raises(http.client.IncompleteRead):
                share.ask("GET", f"{LATEST}/disk/vda.raw")
        assert share.ask("GET", f"{LATEST}/disk/vda.raw", Range="bytes=1080-1081")[1] == b"\x53\xef"
        share.process.send_signal(signal.SIGINT)
        done = ended(share.process)
    assert done.code == 0
    assert len(done.err.splitlines()) == 1
    assert "vda.raw: " in done.err


def test_clients_that_take_nothing_do_not_keep_it_from_its_end(made: Path, share: Share) -> None:
    raw = f"{LATEST}/disk/vda.raw"
    etag = share.ask("HEAD", raw)[0].headers["ETag"]
    with shared(made) as other, ExitStack() as stack:
        assert other.ask("HEAD", raw)[0].headers["ETag"] == etag, "the same, whoever serves it"
        for _ in range(THREADS // 2):
            client = stack.enter_context(closing(socket.socket()))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(other.address)
            client.sendall(f"GET /{raw} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert client.recv(12) == b"HTTP/1.1 200"
        assert other.ask("GET", f"{LATEST}/files/etc/fstab")[1].startswith(b"/dev/vda")
        asked = time.monotonic()
        other.process.send_signal(signal.SIGINT)
        assert ended(other.process).code == 0
        assert time.monotonic() - asked < PATIENCE_S - 5, "it waited for them"


@in_soak
def test_several_clients_and_a_large_disk_in_little_memory(tmp_path: Path) -> None:
    """2 GiB, most of it zeroes, by four clients at once."""
    image = tmp_path / "web1.raw"
    chance = random.Random(1)
    with image.open("wb") as file:
        for place in range(0, 2 << 30, 16 << 20):
            file.seek(place)
            file.write(chance.randbytes(MIB))
        file.truncate(2 << 30)
    Program(tmp_path).init().backup("web1", f"vda={image}")
    expected = run("sha256sum", image).split()[0]
    with shared(tmp_path) as share:
        command = ["bash", "-c", f"curl -s {share.url}{LATEST}/disk/vda.raw | sha256sum"]
        readers = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE) for _ in range(4)]
        assert [reader.communicate(timeout=600)[0].split()[0] for reader in readers] == [expected] * 4
        status = Path(f"/proc/{share.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 700 << 10, "KiB"
