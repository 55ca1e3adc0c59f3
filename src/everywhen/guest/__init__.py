# SPDX-License-Identifier: AGPL-3.0-or-later
"""Partitions, volumes and file systems inside disks, read only: what the guest calls its files (docs/access.md)."""
