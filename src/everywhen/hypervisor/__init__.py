# SPDX-License-Identifier: AGPL-3.0-or-later
"""A libvirt host as who runs VMs sees it: what it has, what is defined and started there. Knows no repository."""
