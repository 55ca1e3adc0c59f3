# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sizes, spans and ages as people write and read them; failures as documents."""

from __future__ import annotations

import errno

import pytest

from everywhen.services import failures
from everywhen.services.ages import DAY, HOUR, MINUTE, SECOND, age, parse_span, span
from everywhen.services.sizes import parse_size, size
from everywhen.storage.base import AccessDenied, ObjectNotFound, OutOfSpace, ReadOnly, StorageError, Unavailable


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (212_000_000, "212 MB"),
        (999_600_000, "1.0 GB"),
        (2_100_000_000_000, "2.1 TB"),
        (-5_000, "-5.0 kB"),
        (10**22, "10000 EB"),
    ],
)
def test_sizes_are_shown_in_decimal_units(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("20 GB", 20 * 10**9),
        ("200G", 200 * 10**9),
        ("512 MiB", 2**29),
        ("1.5tb", 1_500_000_000_000),
        ("4096", 4096),
        ("2%", 20),
        (" 1 B ", 1),
        ("0.5%", 5),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_size(text, whole=1000) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "1,5 GB", "20 XB", "1.5", "101%", "1e9", "\u0663 GB", "20 GB x"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(failures.WrongUsage):
        parse_size(text, whole=1000)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(failures.WrongUsage, match="share has no meaning"):
        parse_size("2%")


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (0, "0.0 s"),
        (600_000_000, "0.6 s"),
        (36 * SECOND, "36 s"),
        (59_600_000_000, "1 min"),
        (380 * SECOND, "6 min 20 s"),
        (85 * MINUTE, "1 h 25 min"),
        (23 * HOUR + 50 * MINUTE, "23 h 50 min"),
        (DAY - 1, "1 d"),
        (3 * DAY + 4 * HOUR, "3 d 4 h"),
        (-36 * SECOND, "-36 s"),
    ],
)
def test_spans(ns: int, shown: str) -> None:
    assert span(ns) == shown


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (0, "now"),
        (SECOND, "1 s"),
        (299 * SECOND, "4 min"),
        (HOUR, "1 h"),
        (325 * DAY + HOUR, "325 d"),
        (-1, "now"),
        (-5 * MINUTE, "in 5 min"),
    ],
)
def test_ages(ns: int, shown: str) -> None:
    assert age(ns) == shown


@pytest.mark.parametrize(
    ("text", "ns"), [("72h", 72 * HOUR), ("2h30m", 150 * MINUTE), ("1w2d", 9 * DAY), ("90S", 90 * SECOND), ("0s", 0)]
)
def test_spans_are_read(text: str, ns: int) -> None:
    assert parse_span(text) == ns


@pytest.mark.parametrize("text", ["", "10", "m", "30m2h", "1.5h", "-1h", "3mo", "1h 2m"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(failures.WrongUsage):
        parse_span(text)


def test_every_failure_has_a_code_of_its_own_and_the_exit_code_of_the_contract() -> None:
    kinds = failures.Failure.__subclasses__()
    assert {kind.code: int(kind.exit) for kind in kinds} == {
        "failed": 1,
        "wrong_usage": 2,
        "damaged": 3,
        "busy": 4,
        "not_found": 6,
        "not_allowed": 7,
        "out_of_space": 8,
        "interrupted": 130,
    }


def test_a_failure_as_a_document() -> None:
    failure = failures.NotFound("No VM.", on="wbe1", do=["everywhen status"])
    error = {"code": "not_found", "exit": 6, "what": "No VM.", "on": "wbe1", "safe": "", "do": ["everywhen status"]}
    assert failure.document() == {"error": error}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OutOfSpace("packs/ab/x", "no room"), failures.NoSpace),
        (AccessDenied("", "no"), failures.NotAllowed),
        (ReadOnly("", "read-only"), failures.NotAllowed),
        (Unavailable("", "timeout"), failures.Failed),
        (ObjectNotFound("packs/ab/x", "gone"), failures.Failed),
    ],
)
def test_what_a_store_could_not_do(error: StorageError, kind: type[failures.Failure]) -> None:
    failure = failures.from_storage(error, url="/backup")
    assert type(failure) is kind
    assert failure.what.startswith("/backup: ")


@pytest.mark.parametrize(
    ("error", "kind", "what"),
    [
        (OSError(errno.ENOSPC, "No space left", "/tmp/x"), failures.NoSpace, "/tmp/x: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", b"/tmp/y"), failures.NotAllowed, "/tmp/y: Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "z"), failures.NotFound, "z: No such file"),
        (OSError(errno.EIO, "Input/output error"), failures.Failed, "Input/output error"),
        (OSError("odd"), failures.Failed, "odd"),
    ],
)
def test_what_the_system_could_not_do(error: OSError, kind: type[failures.Failure], what: str) -> None:
    failure = failures.from_system(error)
    assert type(failure) is kind
    assert failure.what == what
