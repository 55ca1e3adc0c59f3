# SPDX-License-Identifier: AGPL-3.0-or-later
"""Layouts of partition tables and of file systems inside guests: bytes to values, never the other way."""
