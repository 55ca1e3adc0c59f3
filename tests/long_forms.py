# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests that take long, and show at length, or in another way, what others show in seconds: `make soak` runs them."""

from __future__ import annotations

import os

import pytest

in_soak = pytest.mark.skipif(
    "EVERYWHEN_SOAK" not in os.environ, reason="long: make soak; what no shorter one shows is in CONTRIBUTING.md"
)
