# SPDX-License-Identifier: AGPL-3.0-or-later
"""What users run into: each situation with its one clear sentence and its exit code (design 6, ux 4.4)."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from everywhen.formats.cleartext import encode_checked
from tests.program import BLOCK, PROGRAM, WITHOUT_PRIVILEGE, Done, Program, qemu_img, same


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Some data that does not compress, and a hole."""
    path = tmp_path / "a.img"
    path.write_bytes(random.Random(1).randbytes(12 * BLOCK))
    os.truncate(path, 64 * BLOCK)
    return path


def says(done: Done, code: int, *words: str) -> None:
    """One document, the exit code, and words that belong into the sentence."""
    assert done.code == code, done
    text = " ".join(str(value) for value in done.error.values())
    for word in words:
        assert word in text, text
    assert "Traceback" not in done.err


def test_wrong_passphrase_and_none_at_all(tmp_path: Path, image: Path) -> None:
    program = Program(tmp_path)
    (tmp_path / "right").write_text("correct horse\n")
    (tmp_path / "wrong").write_text("battery staple\n")
    program.ok("init", program.repo, "--no-reserve", "--passphrase-file", "right")
    says(program.run("points", "--json", "--passphrase-file", "wrong"), 7, "Wrong", str(program.repo), "key change")
    says(program.run("points", "--json"), 7, "no terminal to ask on", "--passphrase-file")
    says(program.run("points", "--json", "--passphrase-file", "absent"), 7, "absent")
    says(program.run("points", "--json", "--passphrase-file", "/dev/zero"), 7, "/dev/zero", "no passphrase file")
    done = program.run("points", "--passphrase-file", "wrong")
    assert done.out == ""
    assert done.err.startswith("Wrong")


def test_not_a_repository(tmp_path: Path) -> None:
    program = Program(tmp_path)
    says(program.run("points", "--json"), 6, str(program.repo))
    program.repo.mkdir()
    says(program.run("points", "--json"), 6, str(program.repo), "not an Everywhen repository")
    (tmp_path / "file").write_text("x")
    says(program.run("points", "--json", "--repo", "file"), 1, "file", "not a folder")
    del program.environment["EVERYWHEN_REPO"]
    says(program.run("points", "--json"), 6, "--repo")


def test_newer_format_and_unknown_features_are_not_touched(program: Program, image: Path) -> None:
    for place in ("everywhen", "twins/everywhen"):
        path = program.repo / place
        fields = json.loads(path.read_text())
        del fields["check"]
        path.write_bytes(encode_checked(fields | {"format": 2}))
    before = sorted(program.repo.rglob("*"))
    for command in (["points"], ["backup", "web1", f"vda={image}"], ["gc"]):
        says(program.run(*command, "--json"), 1, "format 2", "knows 1", "Nothing was touched", "Update")
    assert sorted(program.repo.rglob("*")) == before


def test_damaged_superblock_has_a_twin(program: Program, image: Path) -> None:
    program.backup("web1", f"vda={image}")
    path = program.repo / "everywhen"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    assert len(program.ok("points")) == 1
    (program.repo / "twins/everywhen").unlink()
    says(program.run("points", "--json"), 3, "everywhen")


def test_truncated_and_flipped_images(program: Program, image: Path, tmp_path: Path) -> None:
    qcow = tmp_path / "a.qcow2"
    qemu_img("convert", "-O", "qcow2", image, qcow)
    whole = qcow.read_bytes()
    qcow.write_bytes(whole[: len(whole) // 2])
    says(program.run("backup", "web1", f"vda={qcow}", "--json"), 3, str(qcow))
    qcow.write_bytes(b"")
    says(program.run("backup", "web1", f"vda={qcow}", "--json"), 3, str(qcow), "empty")
    qcow.write_bytes(whole[:30])
    says(program.run("backup", "web1", f"vda={qcow}", "--json"), 3, str(qcow))
    # The version, the cluster size, the place of the L1 table, the length of the header: each is checked.
    for at in (7, 23, 41, 103):
        flipped = bytearray(whole)
        flipped[at] ^= 0xFF
        qcow.write_bytes(flipped)
        done = program.run("backup", "web1", f"vda={qcow}", "--json")
        assert done.code in (1, 3), (at, done)
        assert str(qcow) in done.error["what"]
    qcow.write_bytes(whole)
    says(program.run("backup", "web1", f"vda={qcow}", "--image-format", "vda=vhdx", "--json"), 3, str(qcow))
    says(program.run("backup", "web1", f"vda={qcow}", "--image-format", "vda=qcow3", "--json"), 1, "qcow3")
    assert program.ok("points") == []


def test_damaged_packs_met_by_a_restore(program: Program, image: Path, tmp_path: Path) -> None:
    program.backup("web1", f"vda={image}")
    packs = sorted(path for path in program.repo.glob("packs/*/*"))
    twins = {path for path in packs if (program.repo / "twins" / path.relative_to(program.repo)).exists()}
    assert len(twins) == 1  # block maps
    data = next(path for path in packs if path not in twins)
    whole = data.read_bytes()
    for damaged in (whole[:-1000], whole[:400_000], whole[:400_000] + b"\0\0\0\0" + whole[400_004:], b""):
        data.write_bytes(damaged)
        (tmp_path / "cache").rename(tmp_path / f"cache-{len(damaged)}-{damaged[400_000:400_001].hex()}")
        done = program.run("restore", "web1/vda", "--to", "back.img", "--json")
        if len(damaged) == len(whole) - 1000:
            assert done.code == 0, done  # only the index at the end is gone: it is made again from the records
            same(image, tmp_path / "back.img")
            (tmp_path / "back.img").unlink()
        else:
            says(done, 3, "chunk", "verify")
            assert not list(tmp_path.glob("back.img*")), "a disk that could not be read is left"
    data.unlink()
    says(program.run("restore", "web1/vda", "--to", "back.img", "--json"), 3, "chunk")
    # Block maps have a second copy: damage of one is no loss.
    data.write_bytes(whole)
    next(iter(twins)).write_bytes(b"")
    program.restore("web1/vda", tmp_path / "back.img")
    same(image, tmp_path / "back.img")


def test_things_that_are_no_files(program: Program, image: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(image)
    (tmp_path / "dangling").symlink_to("nowhere")
    says(program.run("backup", "web1", "vda=fifo", "--json"), 1, "fifo", "neither a file nor a block device")
    for device in ("/dev/null", "/dev/zero"):
        done = program.run("backup", "web1", f"vda={device}", "--json")
        says(done, 1, device, "neither a file nor a block device")
    says(program.run("backup", "web1", f"vda={tmp_path}", "--json"), 1, str(tmp_path))
    says(program.run("backup", "web1", "vda=dangling", "--json"), 6, "dangling")
    program.backup("web1", "vda=link")
    for path in ("fifo", "/dev/null", "/dev/zero"):
        says(program.run("restore", "web1/vda", "--to", path, "--json"), 1, path, "Nothing was written")
        says(program.run("restore", "web1/vda", "--to", path, "--overwrite", "--json"), 1, path, "Nothing was written")
    says(program.run("backup", "web1", "vda=link", "--config", "fifo", "--json"), 2, "fifo", "not a regular file")
    # What a symbolic link leads to is what is written, and it is said.
    (tmp_path / "old.img").write_bytes(b"old")
    (tmp_path / "there").symlink_to("old.img")
    says(program.run("restore", "web1/vda", "--to", "there", "--json"), 1, "there", "old.img", "--overwrite")
    found = program.restore("web1/vda", tmp_path / "there", "--overwrite")
    assert found["disks"]["vda"]["path"] == str(tmp_path / "old.img")
    assert (tmp_path / "there").is_symlink()
    same(image, tmp_path / "old.img")


def test_links_in_the_repository_are_not_followed(program: Program, image: Path, tmp_path: Path) -> None:
    program.backup("web1", f"vda={image}")
    point = next(program.repo.glob("points/*"))
    point.rename(tmp_path / "elsewhere")
    point.symlink_to(tmp_path / "elsewhere")
    says(program.run("points", "--json"), 1, "link or device")
    point.unlink()
    os.mkfifo(point)
    says(program.run("points", "--json"), 1, "link or device")
    point.unlink()
    packs = (program.repo / "packs").rename(tmp_path / "packs")
    (program.repo / "packs").symlink_to(packs)
    done = program.run("backup", "web1", f"vda={image}", "--json")
    says(done, 1, "repo: packs: a link or device is where the folder should be")
    assert "It was not followed" in done.error["safe"]
    assert "take it away" in str(done.error["do"])
    says(program.run("status", "--json", "--repo", image), 1, f"{image}: this is not a folder")


def test_parser_errors_are_documents_too(program: Program) -> None:
    says(program.run("backup", "web1", "--json"), 2, "--help")
    says(program.run("backup", "web1", "vda", "--json"), 2, "DISK=IMAGE")
    says(program.run("backup", "web1", "vda=a", "vda=b", "--json"), 2, "twice")
    says(program.run("backup", "Web 1", "vda=a", "--json"), 2, "Web 1", "a-z")
    says(program.run("backup", "web1", "v/da=a", "--json"), 2, "v/da", "a-z")
    says(program.run("backup", "web1", "vda=a", "--compression", "20", "--json"), 2, "19")
    says(program.run("backup", "web1", "vda=a", "--since", "p-000000000000", "--json"), 2, "--changed-blocks")
    says(program.run("backup", "web1", "vda=a", "--changed-blocks", "vdb=x", "--json"), 2, "vdb")
    says(program.run("backup", "web1", "vda=absent", "--json"), 6, "absent")
    says(program.run("restore", "web1", "--to", "x", "--json"), 6, "web1")
    says(program.run("restore", "web1", "--to", "-", "--json"), 2, "standard output")
    says(program.run("points", "wbe1", "--json"), 6, "wbe1")
    says(program.run("init", program.repo, "--encryption", "none", "--json"), 1, str(program.repo))
    says(program.run("init", "new", "--json"), 2, "no terminal to ask on", "Nothing was made")
    assert not (program.folder / "new").exists()


def test_read_only_media(program: Program, image: Path, tmp_path: Path) -> None:
    program.backup("web1", f"vda={image}")
    prefix = ("unshare", "-m", "sh", "-c", f'mount --bind -o ro {program.repo} {program.repo} && exec "$@"', "sh")
    if program.run("--version", prefix=prefix).code:
        pytest.skip("mounting is not allowed here")
    assert program.run("points", "--json", prefix=prefix).document[0]["vm"] == "web1"
    done = program.run("restore", "web1/vda", "--to", "back.img", prefix=prefix)
    assert done.code == 0, done
    assert "warning: the repository cannot be written" in done.err
    same(image, tmp_path / "back.img")
    says(program.run("backup", "web1", f"vda={image}", "--json", prefix=prefix), 7, "Read-only", "Nothing was changed")
    says(program.run("gc", "--json", prefix=prefix), 7)


def test_unreadable_files_and_colliding_names(program: Program, image: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "web1.xml").write_text(folder)
    both = ["--config", "one/web1.xml", "--config", "two/web1.xml"]
    says(program.run("backup", "web1", f"vda={image}", *both, "--json"), 2, "web1.xml", "Nothing was read")
    says(program.run("backup", "web1", f"vda={image}", "--config", "absent", "--json"), 6, "absent")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", (256 << 20) + 1)
    says(program.run("backup", "web1", f"vda={image}", "--config", "large", "--json"), 2, "large")
    assert not list(program.repo.glob("sessions/*"))
    assert program.ok("points") == []
    image.chmod(0)
    for more in ([], ["--live"]):
        done = program.run("backup", "web1", f"vda={image}", "--json", *more, prefix=WITHOUT_PRIVILEGE)
        says(done, 7, f"{image} cannot be opened: Permission denied")


def test_streams_that_are_closed_full_or_not_read(program: Program, image: Path) -> None:
    program.backup("web1", f"vda={image}")

    def shell(line: str) -> tuple[int, str]:
        command = ["bash", "-c", line.replace("everywhen", str(PROGRAM))]
        done = subprocess.run(command, cwd=program.folder, env=program.environment, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        return done.returncode, done.stdout

    assert shell("everywhen points >&-") == (0, "")
    assert shell("everywhen points <&- >&- 2>&-") == (0, "")
    assert shell("everywhen points > /dev/full") == (8, "")
    assert shell("everywhen restore web1/vda --to - > /dev/full") == (8, "")
    assert shell("everywhen restore web1/vda --to - >&-") == (0, "")
    assert shell("everywhen points | true; exit ${PIPESTATUS[0]}")[0] == 141
