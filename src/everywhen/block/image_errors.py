# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can be wrong with a disk image. Every message names the file and says what to do, if anything can be done.

DeviceError
└── ImageError
    ├── ImageMissing        the image, a parent, an extent or a data file is not there or cannot be opened
    ├── ImageNotAllowed     it is there, and the operating system refuses it to this user
    ├── ImageDamaged        truncated, or its tables or checksums are impossible: nothing of it is trusted
    ├── ImageUnsupported    a format, version or feature that is not read here; encrypted images too
    ├── ReferenceRefused    it names a file outside its folder, itself, or too long a chain
    └── ImageInUse          a running QEMU has it open (qemu_locks)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from everywhen.block.device import DeviceError
from everywhen.formats.errors import FormatError, UnsupportedVersion


class ImageError(DeviceError):
    """A disk image cannot be read. Nothing was changed."""


class ImageMissing(ImageError):
    """A file that is needed is not there, or cannot be opened."""


class ImageNotAllowed(ImageError):
    """A file that is needed may not be opened by this user."""


class ImageDamaged(ImageError):
    """The image contradicts itself or ends too early; what it would give may be wrong, so nothing is given."""


class ImageUnsupported(ImageError):
    """The image needs something that is not supported here."""


class ReferenceRefused(ImageError):
    """The image refers to a file that it must not refer to."""


class ImageInUse(ImageError):
    """Another program has the image open in a way that does not go together with this."""


def not_opened(path: str, error: OSError | ValueError) -> ImageError:
    """What it means for an image that its file `path` cannot be opened."""
    kind = ImageNotAllowed if isinstance(error, PermissionError) else ImageMissing
    return kind(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}")


@contextmanager
def layout_errors(path: str) -> Iterator[None]:
    """Turns what a parser says of bytes into what it means for the image at `path`."""
    try:
        yield
    except UnsupportedVersion as error:
        raise ImageUnsupported(f"{path}: {error}") from error
    except FormatError as error:
        raise ImageDamaged(f"{path}: {error}") from error
