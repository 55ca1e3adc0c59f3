# SPDX-License-Identifier: AGPL-3.0-or-later
"""Block devices and extents as values; disk image formats read and written."""
