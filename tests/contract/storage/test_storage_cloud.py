# SPDX-License-Identifier: AGPL-3.0-or-later
"""What only object stores have: credentials, networks, lost answers, and names of errors that differ by service."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing

import obstore
import pytest

from everywhen.storage.base import AccessDenied, AlreadyExists, ObjectNotFound, StorageError, Unavailable
from everywhen.storage.objectstore import CloudStore

SECRETS = ("secret_access_key", "account_key")


def test_a_prefix_is_a_store_of_its_own(cloud: tuple[str, Mapping[str, str]]) -> None:
    url, options = cloud
    one, other, inside = CloudStore(url, options), CloudStore(url + "-2", options), CloudStore(url + "/vms/", options)
    one.put("vms/a", [b"one"])
    assert [found.name for found in one.list()] == ["vms/a"]
    assert list(other.list()) == []
    assert inside.get("a") == b"one"
    assert [found.name for found in inside.list()] == ["a"]
    assert one.url == url


@pytest.mark.parametrize("cloud", ["s3", "azure"], indirect=True)  # the double of Google's service asks for none
@pytest.mark.xdist_group("clouds")
def test_wrong_credentials_are_refused_and_not_shown(cloud: tuple[str, Mapping[str, str]]) -> None:
    url, options = cloud
    secret = next(key for key in SECRETS if key in options)
    store = CloudStore(url, dict(options) | {secret: "d3Jvbmctc2VjcmV0"})
    for ask in (store.get, store.size, store.delete, lambda name: store.put(name, [b"x"]), lambda name: list(store.list())):
        with pytest.raises(AccessDenied) as caught:
            ask("vms/a")
        assert "d3Jvbmctc2VjcmV0" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_objects_of_others_are_not_listed(cloud: tuple[str, Mapping[str, str]]) -> None:
    bucket, _, prefix = cloud[0].rpartition("/")
    whole = CloudStore(bucket, cloud[1])
    for name in ("UPPER", "with space", "ok"):
        obstore.put(whole._store, f"{prefix}/{name}", b"x")
    assert [found.name for found in CloudStore(*cloud).list()] == ["ok"]


def test_a_put_finds_its_own_object_again_when_the_answer_was_lost(cloud: tuple[str, Mapping[str, str]]) -> None:
    """What obstore does when the first of two requests took effect, but its answer did not arrive."""
    marks = iter(["mine", "mine", "another"])
    store = CloudStore(*cloud, make_mark=lambda: next(marks))
    store.put("points/p", [b"point"], if_absent=True)
    store.put("points/p", [b"point"], if_absent=True)
    with pytest.raises(AlreadyExists):
        store.put("points/p", [b"point"], if_absent=True)


@pytest.fixture
def overloaded() -> Iterator[str]:
    """An address where every request is answered with the status that its path asks for."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with closing(connection):
                request = connection.recv(65536).decode()
                status = request.split("status-", 1)[1][:3]
                connection.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(500, Unavailable), (503, Unavailable), (429, Unavailable), (401, AccessDenied), (403, AccessDenied), (400, StorageError)],
)
def test_what_the_service_says_becomes_our_errors(overloaded: str, status: int, expected: type[StorageError]) -> None:
    options = {"endpoint": overloaded, "region": "x", "access_key_id": "x", "secret_access_key": "x"}
    store = CloudStore(f"s3://status-{status}/r", options, max_retries=0)
    for ask in (store.get, lambda name: store.put(name, [b"x"], if_absent=True), lambda name: list(store.list())):
        with pytest.raises(expected) as caught:
            ask("vms/a")
        assert type(caught.value) is expected


def test_a_service_that_is_not_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    options = {"endpoint": address, "region": "x", "access_key_id": "x", "secret_access_key": "x"}
    store = CloudStore("s3://bucket/r", options, max_retries=1)
    with pytest.raises(Unavailable, match="could not be reached"):
        store.get("a")


@pytest.mark.parametrize(
    "url", ["s3://", "/path", "ftp://bucket/x", "s3://key:secret@bucket/x", "s3://bucket/x?secret=1", "az:container", ""]
)
def test_a_url_that_cannot_be_right_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(StorageError, match="s3://BUCKET") as caught:
        CloudStore(url, {})
    assert "secret" not in str(caught.value)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(StorageError, match="endpoind"):
        CloudStore("s3://bucket", {"endpoind": "http://127.0.0.1"})


@pytest.mark.xdist_group("clouds")
def test_a_missing_container_is_no_missing_object(azure: tuple[str, Mapping[str, str]]) -> None:
    store = CloudStore("az://nosuchcontainer/x", azure[1], max_retries=0)
    for ask in (lambda: store.put("a", [b"x"]), lambda: list(store.list())):
        with pytest.raises(StorageError) as caught:
            ask()
        assert not isinstance(caught.value, ObjectNotFound)
