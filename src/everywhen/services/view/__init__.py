# SPDX-License-Identifier: AGPL-3.0-or-later
"""A moment as devices and files, opened where it lies in the repository: docs/access.md. Whatever shows moments uses this."""
