# SPDX-License-Identifier: AGPL-3.0-or-later
"""Named objects in a file system or an object store."""
