# SPDX-License-Identifier: AGPL-3.0-or-later
"""A moment becomes a domain of libvirt again: definition, disks, UEFI variables, TPM (docs/return.md)."""
