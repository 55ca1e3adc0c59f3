# SPDX-License-Identifier: AGPL-3.0-or-later
"""Makes what tests share importable as `tests.…`, wherever pytest is started."""

from __future__ import annotations

import os
import sys

from hypothesis import settings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Beside three other tests, on processors that are not ours alone, an example may take any time.
settings.register_profile("beside others", deadline=None)
settings.load_profile("beside others")
