# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is still needed, and the removal of what is not (protocol: docs/locking.md)."""
