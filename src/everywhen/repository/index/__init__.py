# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where each chunk is: sorted runs per pack, cached on this machine, rebuilt from the packs."""
