# SPDX-License-Identifier: AGPL-3.0-or-later
"""A running VM followed write by write: attached, copied, sealed, paused, lost and attached again (docs/capture.md)."""
