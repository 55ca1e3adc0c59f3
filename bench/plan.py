# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much is measured: the full run, and a quick one that only shows that the harness works."""

from __future__ import annotations

from dataclasses import dataclass

from bench.images import FileSystem


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes in bytes, numbers of runs."""

    sources: tuple[str, ...]
    """Where real files are taken from."""
    main_files: int
    """Files in the main image (P1, P2, P2b, P3, P8, P9)."""
    main_image: int
    sparse_image: int
    """The sparse disk (P2c), which gets the same files."""
    writes: int
    """Random writes of 4 KiB before each backup of P2."""
    cold_rounds: int
    warm_rounds: int
    clone_files: int
    vms: int
    vm_files: int
    vm_systems: tuple[FileSystem, ...]
    """Separately installed VMs (P7b): so many of each file system, with so many bytes of files."""
    points: int
    """P8."""
    writes_a_point: int
    opened_data: int
    openings: int
    opened_seconds: float
    """P4: bytes of data in the sparse disk, moments that are opened, seconds of each kind of random reads."""
    index_chunks: float
    """P6, in millions."""
    line_bytes_per_s: float
    line_latency_s: float
    """P9."""
    tap_disk: int
    tap_rounds: int
    tap_seconds: float
    """P5, what a tap costs the guest: seconds of each kind of writes."""
    interval_s: int
    intervals: int
    """P5, points at intervals: how far apart, and how many while each kind of writes is measured."""
    load_disk: int
    load_windows: int
    load_window_s: float
    """P5 and P5b, what capture takes of the host."""
    stored_disk: int
    stored_points: int
    stored_writes: int
    stored_hot: int
    """P5c: writes for each point, cold and hot."""
    domain_disk: int
    domain_points: int
    domain_writes: int
    """P5d."""

    def room(self) -> int:
        """Bytes of disk space that are needed at most."""
        # P8 is the fullest: the main image, a copy that gets the history, a restored one (each its files and 15 %), and four
        # repositories (a repository of real files takes 0.5 to 0.65 of them); P2 has five of those and two images.
        main = int((3 * 1.15 + 4.5 * 0.65) * self.main_files)
        several = 3 * self.vms * max(self.vm_files, self.clone_files) // 2 + 4 * max(self.vm_files, self.clone_files)
        # Two copies of the index while it is merged (65 bytes a chunk each), and the sorted names of marking.
        index = int(self.index_chunks * 1e6 * 200)
        return max(main, several, index) + (1 << 30)


FULL = Plan(
    sources=("/usr", "/opt", "/var/lib"),
    main_files=4_300_000_000,
    main_image=6 << 30,
    sparse_image=1 << 40,
    writes=2000,
    cold_rounds=3,
    warm_rounds=3,
    clone_files=1_000_000_000,
    vms=15,
    vm_files=500_000_000,
    vm_systems=("ext4", "XFS", "NTFS"),
    points=1000,
    writes_a_point=20,
    opened_data=2 << 30,
    openings=50,
    opened_seconds=10,
    index_chunks=100,
    line_bytes_per_s=125e6,
    line_latency_s=0.030,
    tap_disk=256 << 20,
    tap_rounds=5,
    tap_seconds=5,
    interval_s=10,
    intervals=4,
    load_disk=1 << 30,
    load_windows=5,
    load_window_s=12,
    stored_disk=2 << 30,
    stored_points=8,
    stored_writes=500,
    stored_hot=2000,
    domain_disk=1 << 30,
    domain_points=5,
    domain_writes=2000,
)

QUICK = Plan(
    sources=("/usr/share", "/usr"),
    main_files=8_000_000,
    main_image=32 << 20,  # files of /usr/share may be so small that 8 MB of them take twice as many blocks
    sparse_image=1 << 30,
    writes=20,
    cold_rounds=0,
    warm_rounds=1,
    clone_files=4_000_000,
    vms=2,
    vm_files=4_000_000,
    vm_systems=("ext4",),
    points=3,
    writes_a_point=4,
    opened_data=16 << 20,
    openings=3,
    opened_seconds=0.5,
    index_chunks=0.02,
    line_bytes_per_s=125e6,
    line_latency_s=0.001,
    tap_disk=16 << 20,
    tap_rounds=1,
    tap_seconds=0.5,
    interval_s=1,
    intervals=2,
    load_disk=16 << 20,
    load_windows=2,
    load_window_s=2,
    stored_disk=64 << 20,
    stored_points=2,
    stored_writes=20,
    stored_hot=64,
    domain_disk=16 << 20,
    domain_points=2,
    domain_writes=20,
)
