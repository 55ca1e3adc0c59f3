# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests that take long, and show at length, or in another way, what others show in seconds: `make soak` runs them."""

from __future__ import annotations

import os

import pytest

SOAK = "EVERYWHEN_SOAK" in os.environ
"""Whether tests that have a long form are to take it."""

in_soak = pytest.mark.skipif(not SOAK, reason="long: make soak; what no shorter one shows is in CONTRIBUTING.md")
