# SPDX-License-Identifier: AGPL-3.0-or-later
"""VMs set back where they are, to any moment, with what is left kept as a branch (docs/return.md)."""
