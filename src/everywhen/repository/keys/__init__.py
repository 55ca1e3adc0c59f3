# SPDX-License-Identifier: AGPL-3.0-or-later
"""The keyset, its slots, and the cipher it gives."""
