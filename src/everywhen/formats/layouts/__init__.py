# SPDX-License-Identifier: AGPL-3.0-or-later
"""Image files as layouts: which bytes of the file are computed, and which are ranges of the disk."""
