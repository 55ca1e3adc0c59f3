# SPDX-License-Identifier: AGPL-3.0-or-later
"""Getting every write out of a hypervisor: taps, the sink, its watchdog, the spool (docs/capture.md). Needs Linux."""
