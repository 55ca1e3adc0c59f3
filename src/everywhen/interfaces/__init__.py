# SPDX-License-Identifier: AGPL-3.0-or-later
"""Translations between people or programs and the services; nothing else."""
