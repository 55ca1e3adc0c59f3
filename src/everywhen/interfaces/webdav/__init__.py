# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tree of `services/view/folders.py` as a share that other computers open."""
