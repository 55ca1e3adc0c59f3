# SPDX-License-Identifier: AGPL-3.0-or-later
"""docs/samba.md as it stands there: a real smbd over a real mount, and versions listed and read by a real client."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest_images import empty, need, run
from tests.long_forms import in_soak
from tests.mounts import Mount, can_mount
from tests.processes import running
from tests.program import Program

pytestmark = [can_mount, in_soak]

DOCS = Path(__file__).parents[2] / "docs" / "samba.md"
MODULES = list(Path("/usr/lib").glob("*/samba/vfs/shadow_copy2.so"))
HOUR = 3600


@pytest.fixture
def mount(program: Program, tmp_path: Path) -> Iterator[Mount]:
    """Two moments an hour apart, of a guest with files for nobody else, and names that Windows does not allow."""
    if not MODULES or not shutil.which("smbclient"):
        pytest.skip("samba, samba-vfs-modules and smbclient are not all installed")
    need("smbd", "mkfs.ext4")
    for number in range(2):
        root = tmp_path / f"root-{number}"
        (root / "etc").mkdir(parents=True)
        (root / "etc" / "os-release").touch()
        (root / "srv" / "private").mkdir(parents=True)
        (root / "srv" / "plan.txt").write_text(f"plan {number}")
        (root / "srv" / "a:b").write_text(f"colon {number}")
        (root / "srv" / "dot.").write_text(f"dot {number}")
        (root / "srv" / 'a?*|<>"\\b').write_text(f"all {number}")
        (root / "srv" / "nul").write_text(f"device {number}")
        (root / "srv" / "link").symlink_to("/srv/plan.txt")
        (root / "srv" / "private" / "key").write_text(f"key {number}")
        (root / "srv" / f"only {number}").write_text("here")
        (root / "srv" / "private" / "key").chmod(0o600)
        (root / "srv" / "private").chmod(0o700)
        image = empty(tmp_path / f"{number}.img", 8 << 20)
        run("mkfs.ext4", "-q", "-d", root, "-E", "root_owner=1234:1234", image)
        program.later_s = number * HOUR
        program.backup("web1", f"vda={image}")
    (tmp_path / "moments").mkdir()
    (tmp_path / "snapshots").symlink_to("moments")
    made = Mount(program, tmp_path / "moments")
    yield made
    made.take_away()


@pytest.fixture
def port(mount: Mount, tmp_path: Path) -> Iterator[int]:
    """Of an smbd with the share that the document has, for guests, and nothing else of this machine's."""
    found = re.search(r"```ini\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    me = getpass.getuser()
    share = found[1].replace("/srv/everywhen", str(tmp_path)).replace("force user = root", f"force user = {me}")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        number = int(one.getsockname()[1])
    own = tmp_path / "smbd"
    folders = {name: own / name for name in ("private dir", "lock directory", "state directory", "cache directory")}
    folders |= {"pid directory": own / "pid", "ncalrpc dir": own / "ncalrpc"}
    for folder in folders.values():
        folder.mkdir(parents=True)
    settings = {
        "server role": "standalone server",
        "smb ports": number,
        "interfaces": "lo",
        "bind interfaces only": "yes",
        "disable netbios": "yes",
        "load printers": "no",
        "map to guest": "bad user",
        "guest account": me,
        **folders,
    }
    lines = "".join(f"    {name} = {value}\n" for name, value in settings.items())
    config = tmp_path / "smb.conf"
    share = share.replace("valid users = @restore", "guest ok = yes")
    config.write_text(f"[global]\n{lines}{share}")
    smbd = shutil.which("smbd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    assert smbd is not None
    command = [smbd, "--foreground", "--no-process-group", "--debug-stdout", f"--configfile={config}"]
    with running(command, tmp_path, lambda: _answers(number)):
        yield number


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def smb(port: int, *orders: str) -> str:
    """What smbclient prints."""
    command = ["smbclient", "-N", "-p", str(port), "//127.0.0.1/web1", "-c", "; ".join(orders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_moments_are_previous_versions(mount: Mount, port: int) -> None:
    names = [moment.name for moment in mount.moments()]
    tokens = [f"@GMT-{name[1:-1].replace('-', '.').replace('_', '-')}" for name in names]
    listed = [line for line in smb(port, r"allinfo srv\plan.txt").splitlines() if line.startswith("@GMT-")]
    assert listed == tokens[::-1]
    assert "plan 1" in smb(port, r"get srv\plan.txt -")
    for number, token in enumerate(tokens):
        for path, words in (("plan.txt", "plan"), ("a÷b", "colon"), ("a¿¤¦«»¨ÿb", "all"), (r"private\key", "key")):
            read = smb(port, rf'get "{token}\srv\{path}" -')
            assert read.startswith(f"{words} {number}"), (path, read)
        shown = smb(port, rf"ls {token}\srv\*")
        assert ("only 0" in shown, "only 1" in shown) == (number == 0, number == 1)
    shorts = [line.split()[0] for line in smb(port, r"ls srv\*").splitlines() if "~" in line]
    reads = [smb(port, rf"get srv\{short} -") for short in shorts]
    assert sorted(read[: read.index("1") + 1] for read in reads) == ["device 1", "dot 1"]
    assert smb(port, r"get srv\link -").startswith("plan 1")
    assert "NOT_FOUND" in smb(port, rf"get {tokens[0]}\srv\link -")
    for change in (r"del srv\plan.txt", r"mkdir srv\new", rf"del {tokens[0]}\srv\plan.txt"):
        assert "NT_STATUS_" in smb(port, change), change
    assert "plan 1" in smb(port, r"get srv\plan.txt -")
