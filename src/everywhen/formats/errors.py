# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can be wrong with bytes.

FormatError
├── BadMagic            these bytes are something else
├── UnsupportedVersion  a newer program wrote them
├── Truncated           fewer bytes than the layout says
└── Corrupt             a checksum, tag or field is impossible
"""


class FormatError(Exception):
    """Bytes that do not follow their layout. The message says which object and which field."""


class BadMagic(FormatError):
    """The bytes do not begin like the layout that was expected."""


class UnsupportedVersion(FormatError):
    """The layout is known, but this version of it (or a feature it demands) is not."""


class Truncated(FormatError):
    """The bytes end before the layout does."""


class Corrupt(FormatError):
    """A checksum, an authentication tag or a field has an impossible value."""
