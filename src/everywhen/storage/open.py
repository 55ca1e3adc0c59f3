# SPDX-License-Identifier: AGPL-3.0-or-later
"""The store that a user names: a path, or s3:// az:// gs://."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from everywhen.storage.base import ObjectStore, StorageError
from everywhen.storage.objectstore import SCHEMES, CloudStore
from everywhen.storage.posix import PosixStore

_SETTINGS = {
    "s3": {"AWS_ENDPOINT_URL": "endpoint", "AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key"}
    | {"AWS_REGION": "region", "AWS_SESSION_TOKEN": "session_token"},
    "az": {"AZURE_STORAGE_ACCOUNT_NAME": "account_name", "AZURE_STORAGE_ACCOUNT_KEY": "account_key"}
    | {"AZURE_STORAGE_ENDPOINT": "endpoint"},
    "gs": {"GOOGLE_SERVICE_ACCOUNT": "service_account", "GOOGLE_BASE_URL": "base_url"},
}
"""Environment variables that say where an object store is and who asks, and obstore's names for them."""

_ELSEWHERE = re.compile(r"([\w.+@-]{2,}):/")
"""`sftp://nas/x`, `s3:/bucket`, `nas:/volume`: meant as another computer. One letter and a colon is a drive of Windows."""

_SECRET = ("_SECRET_ACCESS_KEY", "_SESSION_TOKEN", "_ACCOUNT_KEY")


def variables(where: str) -> dict[str, bool]:
    """The environment variables that count for this store, and whether each is a secret; none for a path."""
    scheme, separator, _ = where.partition("://")
    return {name: name.endswith(_SECRET) for name in _SETTINGS.get(scheme, {})} if separator else {}


def open_store(where: str, environment: Mapping[str, str]) -> ObjectStore:
    """The store at a path or URL; credentials come from `environment`. Nothing is read yet. Raises StorageError."""
    scheme, separator, _ = where.partition("://")
    if separator and scheme in SCHEMES:
        settings = _SETTINGS[scheme]
        return CloudStore(where, {settings[key]: environment[key] for key in settings if environment.get(key)})
    if elsewhere := _ELSEWHERE.match(where):
        raise StorageError(
            "",
            f'there is no kind of store called "{elsewhere[1]}". A repository is a path, or s3://BUCKET/PREFIX, '
            f"az://CONTAINER/PREFIX or gs://BUCKET/PREFIX. If a folder is meant: ./{where}",
        )
    return PosixStore(os.path.expanduser(where))
