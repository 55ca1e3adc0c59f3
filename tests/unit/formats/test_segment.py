# SPDX-License-Identifier: AGPL-3.0-or-later
"""Spool files: what goes in comes out, and nothing damaged passes for records."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everywhen.formats.errors import BadMagic, Corrupt, FormatError, Truncated, UnsupportedVersion
from everywhen.formats.segment import (
    FRAME_SIZE,
    HEADER_SIZE,
    MARK,
    WRITE,
    ZERO,
    SegmentHeader,
    decode_frame,
    decode_group,
    encode_frame,
    encode_group,
    group_aad,
)

HEADER = SegmentHeader(1, 3, b"r" * 16, b"v" * 16, 7, 2, 1000, 1_700_000_000_000_000_000, b"k" * 32)

records = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([WRITE, MARK]), st.integers(0, 255), st.integers(0, (1 << 63) - 1), st.binary(max_size=300)),
        st.tuples(st.just(ZERO), st.integers(0, 255), st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 32) - 1)),
    ),
    min_size=1,
    max_size=40,
)


def encoded(given_records: list[tuple[int, int, int, bytes | int]]) -> bytes:
    rows = [
        (kind, disk, offset, content if isinstance(content, int) else len(content), 10 * at)
        for at, (kind, disk, offset, content) in enumerate(given_records)
    ]
    return encode_group(5, 99, rows, [content for *_, content in given_records if isinstance(content, bytes)], 1)


@given(records)
def test_a_group_comes_back(given_records: list[tuple[int, int, int, bytes | int]]) -> None:
    group = decode_group(encoded(given_records))
    assert (group.sequence, group.time_ns, len(group)) == (5, 99, len(given_records))
    assert group.times.tolist() == [10 * at for at in range(len(given_records))]
    data, ends = group.data(), group.data_ends().tolist()
    for row, (kind, disk, offset, content) in enumerate(given_records):
        assert (group.kinds[row], group.disks[row], group.offsets[row]) == (kind, disk, offset)
        if isinstance(content, bytes):
            assert data[ends[row] - len(content) : ends[row]] == content
        else:
            assert group.lengths[row] == content


@given(records, st.data())
def test_a_damaged_group_is_no_group_or_another(
    given_records: list[tuple[int, int, int, bytes | int]], data: st.DataObject
) -> None:
    plain = bytearray(encoded(given_records))
    cut = data.draw(st.integers(0, len(plain) - 1))
    with pytest.raises(FormatError):
        decode_group(bytes(plain[:cut])).data()
    plain[data.draw(st.integers(0, len(plain) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decode_group(bytes(plain)).data()
    except FormatError:
        return


def test_a_group_that_claims_too_much_is_refused_before_it_is_unpacked() -> None:
    plain = bytearray(encoded([(WRITE, 0, 0, b"x")]))
    plain[16:20] = (1 << 21).to_bytes(4, "little")
    with pytest.raises(Corrupt):
        decode_group(bytes(plain))


def test_the_header_comes_back() -> None:
    data = HEADER.encode()
    assert len(data) == HEADER_SIZE == 192
    assert SegmentHeader.decode(data + b"more") == HEADER


@pytest.mark.parametrize(
    ("at", "error"), [(0, BadMagic), (8, Corrupt), (20, Corrupt), (190, Corrupt)], ids=["magic", "version", "field", "crc"]
)
def test_a_damaged_header_is_refused(at: int, error: type[FormatError]) -> None:
    data = bytearray(HEADER.encode())
    data[at] ^= 1
    with pytest.raises(error):
        SegmentHeader.decode(bytes(data))
    with pytest.raises(Truncated):
        SegmentHeader.decode(bytes(data[:191]))


def test_an_unknown_cipher_is_a_later_version() -> None:
    with pytest.raises(UnsupportedVersion):
        SegmentHeader.decode(replace(HEADER, cipher=9).encode())


def test_frames() -> None:
    frame = encode_frame(4, 1000)
    assert len(frame) == FRAME_SIZE
    assert decode_frame(frame) == (4, 1000)
    for at in range(FRAME_SIZE):
        damaged = bytearray(frame)
        damaged[at] ^= 0x40
        with pytest.raises(FormatError):
            decode_frame(bytes(damaged))
    with pytest.raises(Corrupt):
        decode_frame(encode_frame(0, 1 << 30))
    assert group_aad(HEADER, 1) != group_aad(HEADER, 2)
