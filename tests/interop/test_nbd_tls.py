# SPDX-License-Identifier: AGPL-3.0-or-later
"""TLS with the clients of QEMU and libnbd, who check our certificate, and show theirs."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.nbd import protocol as p
from tests.certificates import Authority
from tests.memory_devices import MIB, MemoryDevice, MemoryExports, Served, served

CONTENT = bytes(range(256)) * (8 * MIB // 256)
DISK = "vm1/vda"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("tls") / "ours")
    made.sign("server")
    made.sign("client")
    return made


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Somebody else's."""
    made = Authority(tmp_path_factory.mktemp("tls") / "strange")
    made.sign("client")
    return made


@pytest.fixture
def running(authority: Authority, tmp_path: Path) -> Iterator[Served]:
    exports = MemoryExports({DISK: MemoryDevice(CONTENT), "scratch": MemoryDevice(bytes(len(CONTENT)))}, frozenset({"scratch"}))
    with served(exports, tmp_path, authority.server_context(client_certificates=True)) as server:
        yield server


@pytest.fixture
def port(running: Served) -> int:
    listening = socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    running.server.listen(listening)
    return port


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def qemu_img(verb: str, folder: Path, port: int, *arguments: str | Path, name: str = DISK) -> subprocess.CompletedProcess[str]:
    credentials = f"tls-creds-x509,id=tls0,endpoint=client,dir={folder}"
    where = f"driver=nbd,host=localhost,port={port},export={name},tls-creds=tls0"
    return run("qemu-img", verb, "--object", credentials, "--image-opts", *arguments, where)


def test_qemu_img(running: Served, authority: Authority, port: int, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(CONTENT)
    done = qemu_img("compare", authority.folder, port, f"driver=raw,file.filename={plain}")
    assert done.returncode == 0, done.stderr
    assert running.reported == []


def test_qemu_img_writes(running: Served, authority: Authority, port: int, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(CONTENT)
    image = f"driver=raw,file.filename={plain}"
    done = qemu_img("convert", authority.folder, port, "-n", "--target-image-opts", image, name="scratch")
    assert done.returncode == 0, done.stderr
    done = qemu_img("compare", authority.folder, port, image, name="scratch")
    assert done.returncode == 0, done.stderr


def test_libnbd(running: Served, authority: Authority, port: int, tmp_path: Path) -> None:
    for where in (f"nbds://localhost:{port}/{DISK}?", f"nbds+unix:///{DISK}?socket={running.path}&"):
        uri = f"{where}tls-certificates={authority.folder}"
        done = run("nbdinfo", "--json", uri)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["TLS"]
        assert told["exports"][0]["export-size"] == len(CONTENT)
        copy = tmp_path / "copy"
        done = run("nbdcopy", "--connections=4", uri, copy)
        assert done.returncode == 0, done.stderr
        assert copy.read_bytes() == CONTENT
    assert running.reported == []


def test_without_tls_nothing_is_told(running: Served, port: int) -> None:
    done = run("nbdinfo", "--list", f"nbd://localhost:{port}")
    assert done.returncode
    assert "vm1" not in done.stdout + done.stderr
    done = run("qemu-img", "info", f"nbd://localhost:{port}/{DISK}")
    assert done.returncode
    assert "TLS" in done.stderr


def test_a_certificate_that_is_not_ours_is_refused_and_reported(
    running: Served, authority: Authority, strange: Authority, port: int, tmp_path: Path
) -> None:
    """It trusts our server, but we do not know it."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(authority.folder / "ca-cert.pem", folder)
    for name in ("client-cert.pem", "client-key.pem"):
        shutil.copy(strange.folder / name, folder)
    assert run("nbdinfo", f"nbds://localhost:{port}/{DISK}?tls-certificates={folder}").returncode
    running.server.stop()
    assert [(name, type(error)) for name, error in running.reported] == [("", ssl.SSLCertVerificationError)]


def begun(running: Served) -> socket.socket:
    """A client that may begin TLS."""
    client = running.dialled()
    client.sendall(p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_STARTTLS, 0))
    said = b""
    while len(said) < p.GREETING.size + p.OPTION_REPLY.size:
        said += client.recv(100)
    return client


def test_who_leaves_is_said_goodbye(running: Served, authority: Authority) -> None:
    """Else whoever cuts a connection could pass for us having ended it."""
    context = ssl.create_default_context(cafile=str(authority.folder / "ca-cert.pem"))
    context.load_cert_chain(authority.folder / "client-cert.pem", authority.folder / "client-key.pem")
    for goodbye in (
        p.OPTION.pack(p.OPTION_MAGIC, p.OPT_ABORT, 0),
        p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, len(DISK))
        + DISK.encode()
        + p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_DISC, 0, 0, 0),
    ):
        with context.wrap_socket(begun(running), server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.sendall(goodbye)
            while client.recv(100):
                pass


def test_who_stops_in_the_middle_of_the_handshake(running: Served) -> None:
    for rest in (b"", b"\x16\x03\x01\x02\x00", b"no TLS at all, and long enough"):
        with begun(running) as client:
            client.sendall(rest)
            client.shutdown(socket.SHUT_WR)
            while client.recv(100):
                pass
    running.server.stop()
    assert [type(error) for _, error in running.reported] == [ssl.SSLError]
