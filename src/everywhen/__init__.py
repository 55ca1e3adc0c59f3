# SPDX-License-Identifier: AGPL-3.0-or-later
"""Everywhen: every disk of every virtual machine, at every moment."""

__version__ = "0.1.0"
