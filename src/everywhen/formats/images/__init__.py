# SPDX-License-Identifier: AGPL-3.0-or-later
"""Byte layouts of disk image formats that others defined: one module per layout."""
