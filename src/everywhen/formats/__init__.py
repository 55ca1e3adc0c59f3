# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bytes to values and back: pure, one place per byte layout."""
