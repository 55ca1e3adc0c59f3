# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which volumes a guest sees where: by the mount table of its root, or as drives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from everywhen.guest.errors import GuestDamaged, GuestError, GuestUnsupported, NoSuchPath
from everywhen.guest.recognition import Role
from everywhen.guest.tree import DriveLetters, Entry, FileSystem, Kind
from everywhen.guest.walking import Found, find, walk
from everywhen.services.view.guest_root import guest_tree
from everywhen.services.view.volumes import GuestVolume
from tests.memory_tree import MemoryFileSystem

Found_ = list[tuple[GuestVolume, MemoryFileSystem | GuestError]]


def volume(disk: str, name: str, kind: str = "ext", role: Role = Role.FILES) -> GuestVolume:
    return GuestVolume(name, (disk,), 1 << 30, kind, role, None, f"1a2b3c4d-{disk}-{name}", f"the {name} of {disk}")


def joined(found: Found_, letters: DriveLetters | None = None) -> FileSystem:
    opened: dict[GuestVolume, MemoryFileSystem | GuestError] = dict(found)

    def open_one(one: GuestVolume) -> FileSystem:
        system = opened[one]
        if isinstance(system, GuestError):
            raise system
        return system

    def given(one: GuestVolume) -> DriveLetters:
        del one
        if letters is None:
            raise NoSuchPath("SYSTEM", "/Windows")
        return letters

    return guest_tree([one for one, _ in found], open_one, given)


def system(files: dict[str, str], kind: str = "ext4", *, label: str = "", uuid: str = "") -> MemoryFileSystem:
    made = MemoryFileSystem(kind, label=label, uuid=uuid, case_sensitive=kind not in ("ntfs", "fat32"))
    for path, text in files.items():
        made.add(path, content=text.encode())
    return made


def subvolumes(paths: dict[str, int], files: dict[str, str]) -> MemoryFileSystem:
    """A Btrfs with UUID b; the numbers of its subvolumes are put into `paths`."""
    made = system({}, "btrfs", uuid="b")
    for number, path in enumerate(paths, 256):
        paths[path] = made.add(path, Kind.FOLDER, subvolume=number).entry.number
    for path, content in files.items():
        made.add(path, content=content.encode())
    return made


def text(tree: FileSystem, path: str) -> str:
    return tree.open(find(tree, path).entry).read(0, 1 << 20).decode()


DATA = ("vdb", "p1")
SPECS: list[tuple[str, Callable[[], MemoryFileSystem]]] = [
    ("UUID=ABCD-01", lambda: system({"x": "data"}, uuid="abcd-01")),
    ('UUID="abcd-01"', lambda: system({"x": "data"}, uuid="abcd-01")),
    ("LABEL=data", lambda: system({"x": "data"}, label="data")),
    ("/dev/disk/by-uuid/abcd-01", lambda: system({"x": "data"}, uuid="abcd-01")),
    ("/dev/disk/by-label/data", lambda: system({"x": "data"}, label="data")),
    ("PARTUUID=1A2B3C4D-vdb-p1", lambda: system({"x": "data"})),
    ("/dev/disk/by-partuuid/1a2b3c4d-vdb-p1", lambda: system({"x": "data"})),
    ('PARTLABEL="the\\040p1\\040of\\040vdb"', lambda: system({"x": "data"})),
    ("/dev/disk/by-label/my\\x20data", lambda: system({"x": "data"}, label="my data")),
    ("LABEL=my\\040data", lambda: system({"x": "data"}, label="my data")),
    ("/dev/sdb1", lambda: system({"x": "data"})),
    ("/dev/vdb1", lambda: system({"x": "data"})),
    ("/dev/nvme1n1p1", lambda: system({"x": "data"})),
]


@pytest.mark.parametrize(("spec", "data"), SPECS)
def test_devices_of_a_mount_table(spec: str, data: Callable[[], MemoryFileSystem]) -> None:
    root = system(
        {"etc/fstab": f"/dev/vda1 / ext4\n{spec} /srv/my\\040data ext4 defaults 0 2 # a remark\n", "srv/my data/x": "covered"}
    )
    tree = joined([(volume("vda", "p1"), root), (volume("vdb", "p1"), data())])
    assert text(tree, "/srv/my data/x") == "data"
    assert tree.notes == ()


@pytest.mark.parametrize("spec", ["/dev/vdb", "/dev/sdb", "/dev/nvme1n1"])
def test_disks_without_partitions(spec: str) -> None:
    root = system({"etc/fstab": f"/dev/vda1 / ext4\n{spec} /srv ext4\n", "srv/.keep": ""})
    found: Found_ = [(volume("vda", "p1"), root), (volume("vdb", "p0"), system({"x": "data"}))]
    assert text(joined(found), "/srv/x") == "data"


LOGICAL = ("/dev/mapper/v--g-home", "/dev/v-g/home", "/dev/disk/by-id/dm-name-v--g-home", "/dev/disk/by-id/dm-uuid-LVM-AbC")


@pytest.mark.parametrize("spec", LOGICAL)
def test_logical_volumes(spec: str) -> None:
    root = system({"etc/fstab": f"/dev/mapper/v--g-root / xfs\n{spec} /home xfs\n", "home/.keep": ""})
    home = system({"ann": "hers"})
    found: Found_ = [(volume("vda", "v--g-root"), root), (replace(volume("vda", "v--g-home"), part_uuid="LVM-AbC"), home)]
    assert text(joined(found), "/home/ann") == "hers"


def test_what_is_mounted_by_hand_is_said() -> None:
    """Where systemd mounts it when somebody looks, it is there."""
    table = (
        "# LABEL=a /b ext4\n/dev/vda1 / ext4\nLABEL=a#b /a ext4 noauto,user\n"
        "LABEL=c /c/ ext4 nofail,noauto,x-systemd.automount,x-systemd.device-timeout=5 0 0\n"
    )
    root = system({"etc/fstab": table, "a/x": "covered", "b/x": "free", "c/.keep": ""})
    found: Found_ = [(volume("vda", "p1"), root)]
    found += [(volume("vda", f"p{n}"), system({"x": "data"}, label=label)) for n, label in ((2, "a#b"), (3, "c"))]
    tree = joined(found)
    assert [text(tree, path) for path in ("/a/x", "/b/x", "/c/x")] == ["covered", "free", "data"]
    assert tree.notes == ("/a is not shown: the guest mounts it when somebody says so; it is vda:/p2",)


def test_bind_mounts() -> None:
    """A folder of a volume that is mounted further down in the table; what is mounted in it shows in its own place alone."""
    table = (
        "/dev/vda1 / ext4\n/srv/disk/home /home none bind 0 0\nLABEL=ann /home/ann ext4\nLABEL=srv /srv/disk ext4\n"
        "/ /mirror none rbind\n/nowhere /gone none bind\n/etc/fstab /file none bind\n"
    )
    root = system(
        {"etc/fstab": table, "file": "outer", "home/.keep": "", "srv/disk/.keep": "", "mirror/.keep": "", "gone/.keep": ""}
    )
    srv = system({"home/bob": "his", "home/ann/.keep": ""}, label="srv")
    srv.add("/home/up", Kind.LINK, target="../srv/disk/home/bob")
    found: Found_ = [
        (volume("vda", "p1"), root),
        (volume("vdb", "p1"), srv),
        (volume("vdc", "p1"), system({"x": "hers"}, label="ann")),
    ]
    tree = joined(found)
    for path, content in {"/home/bob": "his", "/home/ann/x": "hers", "/home/up": "his", "/file": "outer"}.items():
        assert text(tree, path) == content
    names = {
        path: [one.name for one in tree.entries(find(tree, path).entry)]
        for path in ("/home/ann", "/srv/disk/home/ann", "/mirror", "/mirror/home", "/mirror/mirror")
    }
    assert names == {
        "/home/ann": ["x"],
        "/srv/disk/home/ann": [".keep"],
        "/mirror": ["etc", "file", "home", "srv", "mirror", "gone"],
        "/mirror/home": [".keep"],
        "/mirror/mirror": [".keep"],
    }
    assert [one.name for one in tree.entries(find(tree, "/gone").entry) if isinstance(one, Entry)] == [".keep"]
    assert tree.notes == ()


def test_bind_mounts_that_lead_to_themselves() -> None:
    table = "/dev/vda1 / ext4\n/a /a none bind\n/b /c none bind\n/c /b none bind\n/ /a/all none rbind\n"
    found = system({"etc/fstab": table, "a/all/.keep": "", "b/x": "of b", "c/x": "of c"})
    tree = joined([(volume("vda", "p1"), found)])
    assert {text(tree, "/b/x"), text(tree, "/c/x")} in ({"of b"}, {"of c"})
    assert text(tree, "/a/all/b/x") == "of b"
    assert len([one for one in walk(tree, Found("/", tree.root)) if isinstance(one, Found)]) < 40


def test_a_table_of_any_size_is_read_soon() -> None:
    lines = [f"LABEL=x /a{'/a' * (number % 60)} ext4\n/a{number} /b{number} none bind\n" for number in range(4_000)]
    tree = joined([(volume("vda", "p1"), system({"etc/fstab": "".join(["/dev/vda1 / ext4\n", *lines])}))])
    assert len(tree.notes) < 1000


def test_the_root_is_the_one_whose_table_says_so() -> None:
    """A backup of another root lies beside it."""
    other = system({"etc/fstab": "UUID=b / ext4\n", "etc/name": "other"}, uuid="a")
    root = system({"etc/fstab": "UUID=b / ext4\n", "etc/name": "root"}, uuid="b")
    tree = joined([(volume("vda", "p1"), other), (volume("vda", "p2"), root)])
    assert text(tree, "/etc/name") == "root"
    without = joined([(volume("vda", "p1"), system({"x": ""})), (volume("vda", "p2"), system({"usr/lib/os-release": "x"}))])
    assert text(without, "/usr/lib/os-release") == "x"


def test_subvolumes_of_btrfs() -> None:
    table = "UUID=b / btrfs subvol=/@,ro\nUUID=b /home btrfs subvol=@home\n"
    found = subvolumes({"@": 0, "@home": 0}, {"@/etc/fstab": table, "@/home/.keep": "", "@home/ann": "hers"})
    tree = joined([(volume("vda", "p1", "btrfs"), found)])
    assert text(tree, "/home/ann") == "hers"
    assert [one.name for one in tree.entries(tree.root)] == ["etc", "home"]


def test_the_default_subvolume() -> None:
    """As openSUSE has it; a table that says which one it is wins against it."""
    table = "UUID=b / btrfs defaults\nUUID=b /home btrfs subvolid={home}\nUUID=b /top btrfs subvolid=5\n"
    paths = {"@": 0, "@/snapshots/1": 0, "@/home": 0}
    found = subvolumes(paths, {"@/snapshots/1/home/.keep": "", "@/snapshots/1/top/.keep": "", "@/home/ann": "hers"})
    found.add("@/snapshots/1/etc/fstab", content=table.format(home=paths["@/home"]).encode())
    found.default = paths["@/snapshots/1"]
    tree = joined([(volume("vda", "p1", "btrfs"), found)])
    assert text(tree, "/home/ann") == "hers"
    assert text(tree, "/top/@/home/ann") == "hers"
    assert [one.name for one in tree.entries(tree.root)] == ["home", "top", "etc"]
    # Of several that look like a root, the one that its own table means.
    mine = "UUID=b / btrfs subvol=/@\n"
    for path in ("@/etc/fstab", "@/home/etc/fstab"):
        found.add(path, content=mine.encode())
    found.default = paths["@/home"]
    tree = joined([(volume("vda", "p1", "btrfs"), found)])
    assert [one.name for one in tree.entries(tree.root)] == ["snapshots", "home", "etc"]


def test_mounts_within_mounts_links_across_them_and_the_way_back() -> None:
    root = system({"etc/fstab": "LABEL=c /a/b/c ext4\nLABEL=a /a ext4\n", "a/.keep": "", "top": "top"}, label="root")
    root.add("/link", Kind.LINK, target="a/b/c/up")
    first = system({"b/c/.keep": ""}, label="a")
    second = system({"file": "deep"}, label="c")
    second.add("/up", Kind.LINK, target="../../../top")
    second.add("/absolute", Kind.LINK, target="/a/b/c/file")
    tree = joined([(volume("vda", "p1"), root), (volume("vda", "p2"), first), (volume("vda", "p3"), second)])
    assert text(tree, "/a/b/c/absolute") == "deep"
    assert text(tree, "/link") == "top"
    paths = [one.path for one in walk(tree, Found("/", tree.root)) if isinstance(one, Found)]
    assert paths == [
        "/etc",
        "/etc/fstab",
        "/a",
        "/a/b",
        "/a/b/c",
        "/a/b/c/file",
        "/a/b/c/up",
        "/a/b/c/absolute",
        "/top",
        "/link",
    ]
    identities = [one.entry.identity for one in walk(tree, Found("/", tree.root)) if isinstance(one, Found)]
    assert len(set(identities)) == len(identities)  # numbers are used again in each file system


def test_what_cannot_be_mounted_is_said() -> None:
    table = "/dev/vda1 / ext4\nUUID=gone /gone ext4\nLABEL=x /nowhere ext4\ntmpfs /tmp tmpfs\nnas:/x /n nfs\n/x /y none bind\n?"
    found: Found_ = [
        (volume("vda", "p1"), system({"etc/fstab": table, "gone/.keep": ""})),
        (volume("vda", "p2"), GuestDamaged("its superblock is rubbish")),
        (volume("vda", "p3", "LUKS", Role.ENCRYPTED), system({})),
        (volume("vda", "p4"), system({}, label="x")),
    ]
    tree = joined(found)
    assert tree.notes == (
        "vda:/p2 is not shown: its superblock is rubbish",
        "vda:/p3 is not shown: encrypted (LUKS)",
        "/gone is not shown: UUID=gone is none of the volumes that can be read",
    )


def test_a_subvolume_that_is_not_there_fails_its_folder_alone() -> None:
    table = "UUID=b / btrfs subvol=@\nUUID=b /home btrfs subvol=@gone\n"
    tree = joined([(volume("vda", "p1", "btrfs"), subvolumes({"@": 0}, {"@/etc/fstab": table, "@/home/.keep": ""}))])
    assert text(tree, "/etc/fstab") == table
    with pytest.raises(NoSuchPath):
        list(tree.entries(find(tree, "/home").entry))


def test_drives() -> None:
    windows = system({"Windows/System32/x": "", "Users/Ann/letter.txt": "Dear Bob"}, "ntfs")
    windows.add("/Documents and Settings", Kind.LINK, target="\\??\\C:\\Users")
    windows.add("/Users/All", Kind.LINK, target="\\??\\D:\\")
    windows.add("/Users/Ann/up", Kind.LINK, target="..\\Ann\\letter.txt")
    windows.add("/Users/Ann/top", Kind.LINK, target="\\Users\\Ann")
    windows.add("/Users/Ann/far", Kind.LINK, target="\\\\server\\share")
    found: Found_ = [
        (volume("vda", "p1", "fat"), system({"EFI/Microsoft/Boot/x": ""}, "fat32")),
        (volume("vda", "p2", "ntfs"), windows),
        (volume("vda", "p3", "ntfs"), system({"Recovery/WindowsRE/x": ""}, "ntfs")),
        (volume("vdb", "p1", "ntfs"), system({"note.txt": "a note"}, "ntfs")),
        (volume("vdb", "p2"), system({"x": ""})),
    ]
    tree = joined(found)
    assert [one.name for one in tree.entries(tree.root)] == ["C:", "D:"]
    assert not tree.case_sensitive
    assert [note.partition(": the registry cannot be read (")[0] for note in tree.notes] == ["D: is given by order to vdb:/p1"]
    for path in (
        "/c:/users/ann/LETTER.txt",
        "/C:/Documents and Settings/Ann/letter.txt",
        "/C:/Users/Ann/up",
        "/C:/Users/Ann/top/letter.txt",
    ):
        assert text(tree, path) == "Dear Bob"
    assert text(tree, "/C:/Users/All/note.txt") == "a note"
    with pytest.raises(NoSuchPath):
        find(tree, "/C:/Users/Ann/far/x")
    with pytest.raises(NoSuchPath):
        find(tree, "/E:/x")


def test_letters_of_the_registry() -> None:
    """Whichever Windows gave them, also to itself; what it has none for comes in order, and that is said."""
    windows = system({"Windows/System32/x": ""}, "ntfs")
    found: Found_ = [
        (volume("vda", "p1", "fat"), system({"EFI/Microsoft/Boot/x": ""}, "fat32")),
        (volume("vda", "p2", "ntfs"), windows),
        *((volume("vdb", f"p{n}", "ntfs"), system({f"of p{n}": ""}, "ntfs")) for n in (1, 2, 3)),
    ]
    given = {"E": ("vda", "p2"), "C": ("vdb", "p3"), "S": ("vda", "p1"), "T": ("vdb", "p1"), "Z": ("vdz", "p1")}
    name = "Volume{11111111-2222-3333-4444-55555555555A}"
    windows.add("/mnt", Kind.LINK, target=f"{name}\\")
    windows.add("/there", Kind.LINK, target=f"\\??\\{name}\\of p2")
    windows.add("/gone", Kind.LINK, target="\\??\\Volume{22222222-2222-3333-4444-555555555555}\\x")
    tree = joined(found, DriveLetters(given, {name.lower(): ("vdb", "p2")}, whole=True))
    assert text(tree, "/E:/mnt/of p2") == text(tree, "/E:/there") == text(tree, "/D:/of p2")
    with pytest.raises(NoSuchPath):
        find(tree, "/E:/gone")
    shown = {one.name: [inner.name for inner in tree.entries(one)] for one in tree.entries(tree.root) if isinstance(one, Entry)}
    assert shown == {
        "C:": ["of p3"],
        "D:": ["of p2"],
        "E:": ["Windows", "mnt", "there", "gone"],
        "S:": ["EFI"],
        "T:": ["of p1"],
    }
    assert tree.notes == ("D: is given by order to vdb:/p2: the registry has none for it.",)
    older = joined(found[1:3], DriveLetters({"C": ("vda", "p2"), "X": ("vdb", "p1")}, {}, whole=False))
    assert [one.name for one in older.entries(older.root)] == ["C:", "X:"]
    assert "may be in its logs" in older.notes[0]


def test_nothing_that_looks_like_a_system() -> None:
    with pytest.raises(GuestUnsupported, match="no volume looks like the root"):
        joined([(volume("vda", "p1"), system({"x": ""}))])
