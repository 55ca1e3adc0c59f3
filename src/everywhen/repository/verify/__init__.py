# SPDX-License-Identifier: AGPL-3.0-or-later
"""The checks of everything stored, what a finding means for VMs and points, and repair."""
