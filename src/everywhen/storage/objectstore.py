# SPDX-License-Identifier: AGPL-3.0-or-later
"""Objects in S3, Azure Blob Storage and Google Cloud Storage, and in services that speak like them, by obstore.

- An object is one request, also of 32 MiB (S3 and Azure take 5 GB so): a multipart upload would be three, knows no
  condition, and leaves invisible parts behind when it is cut off.
- Put-if-absent is a conditional put (S3 `If-None-Match: *`, Azure the same, GCS `x-goog-if-generation-match: 0`). obstore
  repeats a request whose answer was lost; if the first one had worked, the second finds the object of its own writer.
  So each such put carries a random mark in the object's metadata, by which the writer knows its own object again.
- obstore reads further settings (region, credentials) from the process's environment, as all of these services' tools do;
  the options given here come first.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from everywhen.storage.base import (
    AccessDenied,
    AlreadyExists,
    Buffer,
    ObjectInfo,
    ObjectNotFound,
    OutOfSpace,
    StorageError,
    Traits,
    Unavailable,
    check_name,
    check_prefix,
    check_range,
)

SCHEMES: Mapping[str, type[S3Store | AzureStore | GCSStore]] = {"s3": S3Store, "az": AzureStore, "gs": GCSStore}
_MARK = "everywhenput"  # Azure takes only letters, digits and underscores in names of metadata
_REQUEST_TIMEOUT = timedelta(minutes=5)  # 32 MiB at 1 Mbit/s take 270 s; obstore's own limit of 30 s asks for 9 Mbit/s
_RETRY_TIMEOUT = timedelta(minutes=4)  # no new try after this; AWS refuses signatures older than 5 minutes in some places
_MAX_RETRIES = 8  # 0.1 s, doubled each time: 25 s of waiting in all
_EPOCH = datetime.fromtimestamp(0, UTC)
_TICK = timedelta(microseconds=1)


class CloudStore:
    """The objects below s3://BUCKET[/PREFIX], az://CONTAINER[/PREFIX] or gs://BUCKET[/PREFIX]. Any number of threads."""

    def __init__(
        self,
        url: str,
        options: Mapping[str, str],
        *,
        max_retries: int = _MAX_RETRIES,
        make_mark: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        """`options` are obstore's settings of that kind of store, by its names without prefix: `access_key_id`,
        `secret_access_key`, `region`, `endpoint` · `account_name`, `account_key`, `endpoint` · `service_account_key`,
        `base_url` and so on. An endpoint that begins with `http://` is used without TLS.

        Nothing is sent yet. Raises StorageError for a URL or options that cannot be right.
        """
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.hostname or parts.username or parts.query or parts.fragment:
            raise StorageError("", "a store's URL is s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX")
        self._url = url
        self._make_mark = make_mark
        plain = any(value.startswith("http://") for key, value in options.items() if key in {"endpoint", "base_url"})
        settings: dict[str, Any] = dict(options)
        try:
            self._store = SCHEMES[parts.scheme](
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                config=settings,  # type: ignore[arg-type]  # obstore checks the names
                client_options={"allow_http": plain, "timeout": _REQUEST_TIMEOUT},
                retry_config={"max_retries": max_retries, "retry_timeout": _RETRY_TIMEOUT},
            )
        except UnknownConfigurationKeyError as error:
            raise StorageError("", f"unknown option for {url}: {_first_line(error)}") from None
        except (BaseError, ValueError) as error:
            raise StorageError("", f"{url} cannot be used: {_first_line(error)}") from None

    @property
    def url(self) -> str:
        """As it was given; it cannot contain a secret."""
        return self._url

    @property
    def traits(self) -> Traits:
        """What the three services promise; whether a compatible one keeps it is for `probe_traits` to find out."""
        return Traits(put_if_absent=True, consistent_list=True, remote=True)

    def get(self, name: str) -> bytes:
        """See ObjectReader."""
        try:
            return obstore.get(self._store, check_name(name)).bytes().to_bytes()
        except (BaseError, FileNotFoundError) as error:
            raise _typed(name, error) from error

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """See ObjectReader."""
        check_name(name)
        check_range(offset, length)
        try:
            if length:
                return obstore.get_range(self._store, name, start=offset, length=length).to_bytes()
        except (BaseError, FileNotFoundError) as error:
            # A range that begins at the end or behind it is an error to the services, worded by each in its own way.
            if isinstance(error, FileNotFoundError) or offset < self.size(name):
                raise _typed(name, error) from error
        else:
            self.size(name)  # for its ObjectNotFound
        return b""

    def size(self, name: str) -> int:
        """See ObjectReader."""
        try:
            return obstore.head(self._store, check_name(name))["size"]
        except (BaseError, FileNotFoundError) as error:
            raise _typed(name, error) from error

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectReader. Errors may also come while the listing is read: it is fetched 1,000 names at a time."""
        check_prefix(prefix)
        return self._pages(prefix)

    def space(self) -> None:
        """These services have no such notion."""
        return

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """See ObjectStore."""
        check_name(name)
        mark = self._make_mark()
        try:
            obstore.put(
                self._store,
                name,
                [memoryview(part).cast("B") for part in parts] or b"",
                attributes={_MARK: mark} if if_absent else None,
                use_multipart=False,
                mode="create" if if_absent else "overwrite",
            )
        except AlreadyExistsError as error:
            if self._mark_of(name) != mark:
                raise AlreadyExists(name, "there is an object of that name") from error
        except FileNotFoundError as error:
            raise StorageError(name, f"not stored: {self._url} does not exist ({_first_line(error)})") from error
        except BaseError as error:
            raise _typed(name, error) from error

    def delete(self, name: str) -> None:
        """See ObjectStore."""
        try:
            obstore.delete(self._store, check_name(name))
        except FileNotFoundError:
            return
        except BaseError as error:
            raise _typed(name, error) from error

    def _mark_of(self, name: str) -> str | None:
        try:
            mark = obstore.get(self._store, name, options={"head": True}).attributes.get(_MARK)
        except FileNotFoundError:
            return None  # the winner deleted it since
        except BaseError as error:
            raise _typed(name, error) from error
        return mark

    def _pages(self, prefix: str) -> Iterator[ObjectInfo]:
        try:
            for page in obstore.list(self._store, prefix=prefix[:-1] or None, chunk_size=1000):
                for found in page:
                    try:
                        name = check_name(found["path"])
                    except ValueError:
                        continue  # not ours
                    modified_ns = (found["last_modified"] - _EPOCH) // _TICK * 1000
                    yield ObjectInfo(name, found["size"], modified_ns)
        except (BaseError, FileNotFoundError) as error:
            typed = _typed(prefix, error)
            raise StorageError(prefix, str(typed)) if isinstance(typed, ObjectNotFound) else typed from error


def _first_line(error: Exception) -> str:
    """What happened, without the debugging dump behind it and without the query of a URL, which may hold a signature."""
    return re.sub(r"(https?://[^\s?]*)\?\S*", r"\1?…", str(error).strip().split("\n", 1)[0])[:300]


def _typed(name: str, error: Exception) -> StorageError:
    """Our class for an error of obstore, which has classes for few of them; the others are told by the HTTP status."""
    message = _first_line(error)
    if isinstance(error, FileNotFoundError):
        return ObjectNotFound(name, "there is no such object")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return AccessDenied(name, f"the service refused these credentials: {message}")
    if isinstance(error, InvalidPathError):
        return StorageError(name, message)
    found = re.search(r"status code: (\d{3})", message)
    status = int(found[1]) if found else None
    if status in {401, 403}:
        return AccessDenied(name, f"the service refused these credentials: {message}")
    if status == 507:
        return OutOfSpace(name, f"the service has no room left: {message}")
    if status is not None and 400 <= status < 500 and status not in {408, 409, 425, 429}:
        return StorageError(name, f"the service did not accept the request: {message}")
    return Unavailable(name, f"the service could not be reached or is overloaded, try again: {message}")
