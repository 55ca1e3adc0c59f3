# SPDX-License-Identifier: AGPL-3.0-or-later
"""Booting a copy of a VM from the backup: which machine it gets, what QEMU is told, how it is run and watched."""
