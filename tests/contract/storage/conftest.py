# SPDX-License-Identifier: AGPL-3.0-or-later
"""Object stores to test against: real servers where `scripts/test-servers` has put them, and a double for Google's.

- S3: SeaweedFS. Azure: Azurite, Microsoft's own. Each is started once, on free ports, below a temporary folder.
- Google: no emulator that is a package speaks the XML interface that obstore uses (fake-gcs-server and
  gcp-storage-emulator answer uploads of it with 400). So this is a double after the published protocol
  (https://cloud.google.com/storage/docs/xml-api); Google's own service was never seen.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import http.client
import json
import re
import shutil
import socket
import threading
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeAlias
from xml.sax.saxutils import escape

import pytest

from everywhen.storage.base import ObjectStore
from everywhen.storage.delayed import DelayedStore
from everywhen.storage.faulty import FaultyStore
from everywhen.storage.memory import MemoryStore
from everywhen.storage.metered import MeteredStore
from everywhen.storage.objectstore import CloudStore
from everywhen.storage.posix import PosixStore
from everywhen.storage.recording import RecordingStore
from tests.processes import running

Cloud: TypeAlias = tuple[str, Mapping[str, str]]  # a bucket's URL and the options for it

SERVERS = Path(__file__).resolve().parents[3] / ".servers"
# Published in Azurite's documentation as the key of its only account.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def free_ports(count: int) -> list[int]:
    """Ports of this machine that were free just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def status_of(port: int, method: str, path: str, headers: Mapping[str, str] | None = None) -> int | None:
    """The answer's HTTP status, or None when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    weed = SERVERS / "python" / "bin" / "weed"
    if not weed.exists():
        pytest.skip("SeaweedFS is not installed: run scripts/test-servers")
    folder = tmp_path_factory.mktemp("seaweedfs")
    key = {"accessKey": "everywhen", "secretKey": "not-a-secret"}
    identity = {"name": "tests", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ["master", "volume", "filer", "s3"]
    ports = free_ports(2 * len(names))
    command = [str(weed), "server", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.config=s3.json"]
    command += [f"-{name}.port={port}" for name, port in zip(names, ports[::2], strict=True)]
    command += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[1::2], strict=True)]
    command += ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=30"]
    port = ports[2 * names.index("s3")]
    options = {"access_key_id": key["accessKey"], "secret_access_key": key["secretKey"], "region": "us-east-1"}
    with running(command, folder, lambda: status_of(port, "GET", "/healthz") == 200):
        yield "s3://everywhen", options | {"endpoint": f"http://127.0.0.1:{port}"}


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    azurite = SERVERS / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    node = shutil.which("node")
    if node is None or not azurite.exists():
        pytest.skip("node or Azurite is not installed: run scripts/test-servers")
    folder = tmp_path_factory.mktemp("azurite")
    (port,) = free_ports(1)
    command = [node, str(azurite), "--blobPort", str(port), "--location", ".", "--silent", "--disableTelemetry"]
    # It refuses versions of the protocol that are newer than itself, although nothing that we use has changed.
    command += ["--skipApiVersionCheck"]
    with running(command, folder, lambda: make_container(port) == 201):
        endpoint = f"http://127.0.0.1:{port}/{AZURITE_ACCOUNT}"
        yield "az://everywhen", {"account_name": AZURITE_ACCOUNT, "account_key": AZURITE_KEY, "endpoint": endpoint}


def make_container(port: int) -> int | None:
    """Ask Azurite for a container; signed as Microsoft's "Authorize with Shared Key" says."""
    path = f"/{AZURITE_ACCOUNT}/everywhen"
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    signed = "\n".join([*lines, f"/{AZURITE_ACCOUNT}{path}", "restype:container"])
    mac = hmac.new(base64.b64decode(AZURITE_KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(mac).decode()}"
    return status_of(port, "PUT", f"{path}?restype=container", headers)


class GoogleDouble(BaseHTTPRequestHandler):
    """One bucket by the XML interface: PUT with x-goog-if-generation-match, GET with Range, HEAD, DELETE, listing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgement of its headers
    objects: dict[str, tuple[bytes, dict[str, str]]]
    lock: threading.Lock
    page = 100  # of the 1,000 that may be asked for, so that few objects make several pages

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.object_name()
        with self.lock:
            if self.headers.get("x-goog-if-generation-match") == "0" and name in self.objects:
                self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            kept = {key: value for key, value in self.headers.items() if key.lower().startswith("x-goog-meta-")}
            kept |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "x-goog-generation": "1"}
            kept["Last-Modified"] = email.utils.format_datetime(datetime.now(UTC), usegmt=True)
            self.objects[name] = content, kept
        self.answer(200, b"", kept)

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if "list-type" in query:
            self.listing({key: values[0] for key, values in query.items()})
            return
        content, kept = self.objects.get(self.object_name(), (None, {}))
        if content is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            self.answer(200, content, kept)
        elif int(asked[1]) >= len(content):
            self.answer(416, b"<Error><Code>InvalidRange</Code></Error>")
        else:
            part = content[int(asked[1]) : int(asked[2]) + 1]
            extent = f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(content)}"
            self.answer(206, part, kept | {"Content-Range": extent})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        with self.lock:
            known = self.objects.pop(self.object_name(), None)
        self.answer(204 if known else 404, b"")

    def object_name(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).removeprefix("/everywhen/")

    def listing(self, query: Mapping[str, str]) -> None:
        with self.lock:
            found = [(name, *self.objects[name]) for name in sorted(self.objects)]
        after = query.get("continuation-token", "")
        found = [each for each in found if each[0].startswith(query.get("prefix", "")) and each[0] > after]
        items = []
        for name, content, kept in found[: self.page]:
            modified = email.utils.parsedate_to_datetime(kept["Last-Modified"]).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            etag = f"<ETag>{escape(kept['ETag'])}</ETag>"
            items.append(
                f"<Contents><Key>{escape(name)}</Key><LastModified>{modified}</LastModified>{etag}"
                f"<Size>{len(content)}</Size></Contents>"
            )
        last = escape(found[self.page - 1][0]) if len(found) > self.page else ""
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last else ""
        self.answer(200, f"<ListBucketResult>{more}{''.join(items)}</ListBucketResult>".encode())

    def answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture(scope="session")
def google() -> Iterator[Cloud]:
    double = type("Bucket", (GoogleDouble,), {"objects": {}, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), double)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        yield "gs://everywhen", {"service_account_key": json.dumps(account), "base_url": address}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# One process runs all tests of these, so that each server is started once.
CLOUDS = [pytest.param(name, marks=pytest.mark.xdist_group("clouds")) for name in ("s3", "azure", "google")]


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> Cloud:
    """Each object store's bucket and options, with a prefix of this test's own."""
    bucket, options = request.getfixturevalue(request.param)
    return f"{bucket}/{uuid.uuid4().hex}", options


LOCAL = ["memory", "posix", "recording", "faulty", "delayed", "metered"]


@pytest.fixture(params=[*LOCAL, *CLOUDS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    kind = request.param
    if kind not in LOCAL:
        bucket, options = request.getfixturevalue(kind)
        return CloudStore(f"{bucket}/{uuid.uuid4().hex}", options)
    if kind == "memory":
        return MemoryStore()
    inner = PosixStore(tmp_path / "repository")
    if kind == "delayed":
        return DelayedStore(inner, latency_s=1.0, bytes_per_s=1e6, sleep=lambda seconds: None, clock=lambda: 0.0)
    wrappers = {"recording": RecordingStore, "faulty": FaultyStore, "metered": MeteredStore}
    return wrappers[kind](inner) if kind in wrappers else inner
