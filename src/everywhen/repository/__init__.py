# SPDX-License-Identifier: AGPL-3.0-or-later
"""Chunks, packs, index, block maps, recovery points, keys, gc and verify."""
