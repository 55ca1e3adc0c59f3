# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line: one module per command group."""

import os

# Read when numpy is loaded, so it stands here. OpenBLAS starts a thread per processor, and they spin for a while: 60 ms of
# processor time at every start (2 processors), for multiplications of matrices that nobody does here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
