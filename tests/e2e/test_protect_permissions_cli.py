# SPDX-License-Identifier: AGPL-3.0-or-later
"""A QEMU that runs as another user: it is let to our sockets, and to no more; where it does not get there, that is said."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from everywhen.capture.qmp import QmpMonitor
from everywhen.capture.socket_access import ProcessUser
from everywhen.interfaces.control_socket import NobodyThere, ask
from tests.captures import Capture
from tests.hypervisor import QEMU, eventually
from tests.processes import TIED
from tests.program import Program, ended

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a program as another user")
MIB = 1 << 20
NOBODY = pwd.getpwnam("nobody")
AS_NOBODY = ("setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups")
Start = Callable[..., Path]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Below folders that all may enter, which a test's own are not."""
    with tempfile.TemporaryDirectory(prefix="pe-") as made:
        path = Path(made)
        path.chmod(0o711)
        yield path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start a QEMU; gives its monitor's socket."""
    place = folder / "qemu"
    place.mkdir()
    (place / "a.raw").write_bytes(bytes([3]) * MIB)
    for path in (place, place / "a.raw"):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)

    def started(*before: str, more: tuple[str, ...] = ()) -> Path:
        command = [QEMU, "-S", "-nodefaults", "-display", "none", "-M", "q35", "-m", "32", *more]
        command += ["-blockdev", f"driver=file,node-name=a,filename={place}/a.raw", "-device", "virtio-blk-pci,drive=a,id=vd0"]
        process = subprocess.Popen([*before, *TIED, *command, "-qmp", f"unix:{place}/qmp.sock,server=on,wait=off"], cwd="/")
        stack.callback(process.wait)
        stack.callback(process.kill)
        eventually((place / "qmp.sock").exists, "QEMU is there")
        return place / "qmp.sock"

    with ExitStack() as stack:
        yield started


@pytest.fixture
def program(tmp_path: Path, folder: Path) -> Program:
    """Its state is for its owner only, and below a folder that all may enter."""
    state = folder / "state"
    state.mkdir(mode=0o711)
    return Program(tmp_path, more={"EVERYWHEN_STATE": str(state)}).init()


@pytest.mark.parametrize("by_itself", [False, True], ids=["from-the-start", "runas"])
def test_it_is_let_in(program: Program, folder: Path, start: Start, by_itself: bool) -> None:
    qmp = start(more=("-runas", "nobody")) if by_itself else start(*AS_NOBODY)
    with QmpMonitor.connect(str(qmp)) as monitor:
        assert monitor.peer[:2] == (NOBODY.pw_uid, NOBODY.pw_gid)
    with Capture(program, "web1", qmp, "--pace", "0") as capture:
        capture.followed()
        spool = folder / "state" / "web1" / "spool"
        assert not ProcessUser(NOBODY.pw_uid, NOBODY.pw_gid, frozenset({NOBODY.pw_gid})).may(spool, 1)
        capture.stop()
    program.restore("web1/vd0", program.folder / "back.raw")
    assert (program.folder / "back.raw").read_bytes() == bytes([3]) * MIB


def test_with_no_more_rights_than_the_unit_leaves_it(program: Program, folder: Path, start: Start) -> None:
    """Also not fewer: the image of a disk with an iothread is read beside QEMU only where what QEMU has open can be seen."""
    unit = (Path(__file__).parents[2] / "packaging" / "everywhen-protect@.service").read_text()
    rights = re.findall(r"CAP_(\w+)", next(line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet=")))
    bounds = ",".join(["-all", *(f"+{right.lower()}" for right in rights)])
    prefix = ("setpriv", "--no-new-privs", f"--bounding-set={bounds}", f"--inh-caps={bounds}")
    process = program.start("protect", "web1", "--qmp", start(*AS_NOBODY), "--pace", "0", prefix=prefix)
    try:
        eventually(lambda: process.poll() is not None or follows(folder / "state" / "web1"), "it follows")
        assert process.poll() is None
        seen = "import sys; from everywhen.capture.image_beside import _is_open_elsewhere as seen; print(seen(sys.argv[1]))"
        look = [*prefix, sys.executable, "-c", seen, str(folder / "qemu" / "a.raw")]
        assert subprocess.run(look, capture_output=True, text=True, check=True).stdout == "True\n"
    finally:
        process.send_signal(signal.SIGINT)
        done = ended(process)
    assert done.code == 0, done


def follows(folder: Path) -> bool:
    """Whether every write is captured."""
    try:
        return bool(ask(folder, {"wish": "status"})["state"] == "following")
    except NobodyThere:
        return False


def test_a_folder_that_is_in_the_way_is_named(program: Program, folder: Path, start: Start) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    program.environment["EVERYWHEN_STATE"] = str(closed)
    done = program.run("protect", "web1", "--qmp", start(*AS_NOBODY))
    assert done.code == 1, done
    assert f"QEMU runs as user {NOBODY.pw_uid} and may not pass through {closed}" in done.err
    assert "Nothing of it is left in the VM" in done.err


def test_one_that_cannot_reach_what_it_may_use(program: Program, folder: Path, start: Start) -> None:
    """As under a security module: for QEMU alone there is nothing to enter where our sockets are."""
    hidden = f'mount -t tmpfs -o mode=0700 none {folder}/state && exec setpriv {" ".join(AS_NOBODY[1:])} "$@"'
    qmp = start("unshare", "--mount", "sh", "-c", hidden, "sh")
    done = program.run("protect", "web1", "--qmp", qmp, "--json")
    assert done.code == 1, done
    assert "Permission denied" in done.error["what"]
    assert done.error["what"].startswith("web1 cannot be captured: vd0: ")
    assert any("AppArmor" in line for line in done.error["do"])
    with QmpMonitor.connect(str(qmp)) as monitor:
        assert monitor.execute("query-block-jobs") == []
        assert not any(node["node-name"].startswith("everywhen-") for node in monitor.execute("query-named-block-nodes"))


def test_a_monitor_of_another_users(folder: Path, start: Start) -> None:
    qmp = start()
    qmp.chmod(0o600)
    theirs = Program(folder / "qemu", more={"EVERYWHEN_STATE": str(folder / "qemu" / "state")})
    done = theirs.run("init", theirs.repo, "--encryption", "none", "--no-reserve", "--json", prefix=AS_NOBODY)
    if done.code:
        pytest.skip(f"another user cannot run the program here: {done.err[-200:]}")
    done = theirs.run("protect", "web1", "--qmp", qmp, prefix=AS_NOBODY)
    assert done.code == 7, done
    assert "Permission denied" in done.err
    assert "sudo" in done.err
