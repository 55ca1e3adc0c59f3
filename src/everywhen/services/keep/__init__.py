# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which moments stay: policies, holds, prune and its brakes, room on a full medium."""
