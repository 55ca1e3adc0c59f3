# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Network Block Device protocol: sans-I/O sessions of both sides. Sockets belong to their users."""
