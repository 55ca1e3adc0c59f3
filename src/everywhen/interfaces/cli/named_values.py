# SPDX-License-Identifier: AGPL-3.0-or-later
"""Arguments that name what they are about: `DISK=IMAGE`, `VM/DISK=FORMAT`."""

from __future__ import annotations

from everywhen.services.failures import WrongUsage


def pairs(given: list[str], what: str) -> dict[str, str]:
    """`NAME=VALUE` arguments as a dictionary. Raises WrongUsage."""
    found: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise WrongUsage(f'"{item}" is not {what}.', on=item)
        if name in found:
            raise WrongUsage(f'"{name}" is given twice.', on=item)
        found[name] = value
    return found
