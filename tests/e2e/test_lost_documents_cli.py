# SPDX-License-Identifier: AGPL-3.0-or-later
"""Both copies of one small document are damaged (rule 4.9.6): it has a radius, and there is a way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.long_forms import in_soak
from tests.program import Program

pytestmark = pytest.mark.xdist_group("lost-documents")  # so that the repository is made once
DAY_S = 86400


def write(folder: Path, number: int) -> Path:
    image = folder / "disk.img"
    image.write_bytes(bytes([number]) * 65536 * 3)
    return image


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """web1 has two moments, the older one held, dropped and taken back; gc deleted two before them. web2 has one."""
    program = Program(tmp_path_factory.mktemp("lost")).init()
    for number in range(3):
        program.backup("web1", f"vda={write(program.folder, number)}")
    program.ok("policy", "set", "web1", "last 1")
    program.ok("prune", "--yes-more-than-a-third")
    program.later_s = 4 * DAY_S
    program.ok("gc", "--yes-the-clock-is-right")
    assert len(program.ok("points", "web1")) == 1
    program.backup("web1", f"vda={write(program.folder, 4)}")
    program.ok("prune", "--yes-more-than-a-third")
    program.ok("prune", "--undo")
    program.ok("policy", "set", "web1", "last 9")
    program.ok("policy", "set", "last 9", "--default")
    program.backup("web2", f"vda={write(program.folder, 5)}")
    program.ok("hold", oldest(program), "--reason", "audit")
    program.ok("verify")
    return program.folder


@pytest.fixture
def program(before: Path, tmp_path: Path) -> Program:
    shutil.copytree(before / "repo", tmp_path / "repo")
    found = Program(tmp_path)
    found.later_s = 4 * DAY_S
    return found


def oldest(program: Program) -> str:
    return f"web1@{program.ok('points', 'web1')[-1]['id']}"


def spoil(program: Program, name: str) -> None:
    """Bytes in the middle of both copies."""
    for path in (program.repo / name, program.repo / "twins" / name):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x55
        path.chmod(0o600)
        path.write_bytes(content)


def documents(program: Program, prefix: str) -> list[str]:
    """By age."""
    found = sorted((program.repo / prefix).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return [f"{prefix}/{path.name}" for path in found]


def goes_on(program: Program, name: str) -> None:
    """What has nothing to do with it; `status` names it."""
    program.restore("web2", program.folder / "out", "--overwrite")
    status = program.ok("status")
    assert any(name.removeprefix("points/") in one for one in status["unreadable"]), status


def stops(program: Program, *command: str) -> None:
    done = program.run(*command, "--json")
    assert done.code in (1, 3), done
    assert "othing was d" in str(done.error)


def given_up(program: Program, name: str) -> None:
    """`verify` says how, that helps, and all is well."""
    found = program.run("verify")
    assert (found.code, f"--repair --give-up {name} " in found.out) == (3, True), found
    assert "No moment loses anything" not in found.out
    done = program.run("verify", "--repair", "--give-up", name)
    assert done.code == 0, done
    assert program.run("verify").code == 0
    program.ok("gc")


def test_a_hold(program: Program) -> None:
    (name,) = documents(program, "holds")
    spoil(program, name)
    goes_on(program, name)
    program.backup("web2", f"vda={write(program.folder, 6)}")
    program.ok("points", "web1")
    program.ok("timeline", "web2")
    stops(program, "prune")
    stops(program, "gc")
    assert program.run("verify", "--repair").code == 3
    given_up(program, name)
    program.ok("prune")
    assert not program.ok("status")["unreadable"]


@in_soak
def test_a_drop_whose_moments_are_gone(program: Program) -> None:
    name = documents(program, "drops")[0]
    spoil(program, name)
    stops(program, "prune")
    stops(program, "gc")
    given_up(program, name)
    assert len(program.ok("points", "web1")) == 2


@in_soak
def test_a_drop_whose_moments_are_there(program: Program) -> None:
    program.ok("policy", "set", "web1", "last 1")
    program.ok("release", oldest(program))
    program.ok("prune", "--yes-more-than-a-third")
    assert len(program.ok("points", "web1")) == 1
    name = documents(program, "drops")[-1]
    spoil(program, name)
    assert len(program.ok("points", "web1")) == 2
    given_up(program, name)
    assert len(program.ok("points", "web1")) == 2


@in_soak
def test_what_was_taken_back(program: Program) -> None:
    (name,) = documents(program, "undone")
    spoil(program, name)
    assert len(program.ok("points", "web1")) == 2
    stops(program, "prune")
    stops(program, "gc")
    given_up(program, name)
    assert len(program.ok("points", "web1")) == 2


@in_soak
def test_a_vm(program: Program) -> None:
    before = {one: (program.repo / one).read_bytes() for one in documents(program, "vms")}
    program.ok("policy", "set", "web1", "last 8")
    (name,) = (one for one, content in before.items() if (program.repo / one).read_bytes() != content)
    spoil(program, name)
    unnamed = f"unnamed-{name.removeprefix('vms/')[:8]}"
    assert {vm["vm"] for vm in program.ok("status")["vms"]} == {"web2", unnamed}
    program.restore(unnamed, program.folder / "web1", "--overwrite")
    stops(program, "prune")  # it may have had a policy that keeps more than the default does
    given_up(program, name)
    program.backup("web1", f"vda={write(program.folder, 7)}")
    assert len(program.ok("points", "web1")) == 3


def test_a_moment(program: Program) -> None:
    (_, older) = (one["id"] for one in program.ok("points", "web1"))
    spoil(program, f"points/{older}")
    goes_on(program, f"points/{older}")
    stops(program, "gc")
    given_up(program, f"points/{older}")
    assert len(program.ok("points", "web1")) == 1


@in_soak
def test_the_default_policy(program: Program) -> None:
    spoil(program, "settings/policy")
    program.ok("status")
    stops(program, "prune")
    assert program.run("verify", "--repair", "--give-up", "settings/policy").code == 0
    program.ok("prune")


@in_soak
def test_only_what_is_lost_can_be_given_up(program: Program) -> None:
    (name,) = documents(program, "holds")
    assert program.run("verify", "--repair", "--give-up", name).code == 2
    spoil(program, name)
    assert program.run("verify", "--give-up", name).code == 2
    assert program.run("verify", "--repair", "--give-up", name, "--give-up", "vms/0").code == 2
    assert (program.repo / name).exists()
