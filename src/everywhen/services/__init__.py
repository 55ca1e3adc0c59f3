# SPDX-License-Identifier: AGPL-3.0-or-later
"""What, when and how long: the only layer that knows VMs by name, policies and the clock."""
