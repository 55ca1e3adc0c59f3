# SPDX-License-Identifier: AGPL-3.0-or-later
"""Makes what tests share importable as `tests.…`, wherever pytest is started."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
