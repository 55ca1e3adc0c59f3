# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files through all moments of a VM: when they changed, without opening one moment after the other (docs/access.md)."""
