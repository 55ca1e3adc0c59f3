# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM runs from the backup, its writes are its timeline, and it moves to production storage (docs/return.md)."""
