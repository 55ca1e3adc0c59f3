# SPDX-License-Identifier: AGPL-3.0-or-later
"""UEFI's variables and the state of a TPM are in every recovery point of a domain, and come back: from files that the domain
was undefined with, through `restore`, to a domain that starts with them."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import SOAK

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20
OVMF = Path("/usr/share/OVMF")
UEFI = f"<loader readonly='yes' type='pflash'>{OVMF}/OVMF_CODE_4M.fd</loader><nvram>{{folder}}/vars.fd</nvram>"
TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
_KIB = 128 << 10
"""Its memory: with 32 MiB the firmware does not come to its variables."""
WITH_ITS_FILES = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM


@pytest.fixture
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    with Guest(libvirtd, "uefi", [(MIB, "raw")], os_more=UEFI, more=TPM) as made:
        shutil.copy(OVMF / "OVMF_VARS_4M.fd", variables(made))
        for flag in (libvirt.VIR_DOMAIN_MEM_MAXIMUM, 0):
            made.raw.setMemoryFlags(_KIB, flag | libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        made.start()
        yield made


def variables(guest: Guest) -> Path:
    return guest.folder / "vars.fd"


def tpm_state(guest: Guest) -> Path:
    """Where libvirt keeps it: that folder is /var/lib of its namespace."""
    return guest.libvirtd.folder / "lib" / "libvirt" / "swtpm" / guest.domain.uuid


def firmware_writes(guest: Guest) -> bytes:
    """A variable more; by real firmware in the long form."""
    before = variables(guest).read_bytes()
    if SOAK:
        guest.raw.resume()
        eventually(lambda: variables(guest).read_bytes() != before, "the firmware has written variables", 300)
        guest.raw.suspend()
    else:
        with variables(guest).open("r+b") as file:
            file.seek(70_000)
            file.write(b"a variable")
    return variables(guest).read_bytes()


def test_what_a_domain_is_undefined_with_comes_back(tmp_path: Path, guest: Guest) -> None:
    with LibvirtCapture(tmp_path, guest) as capture:
        capture.start("--seal-every", "1h", prefix=guest.libvirtd.inside)
        written = firmware_writes(guest)
        assert "point" in capture.wish("mark", text="it was set up")
        # `undefine --nvram` of a domain that runs: it runs on, and its files are gone.
        defined = guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        guest.raw.undefineFlags(WITH_ITS_FILES)
        guest.libvirtd.connection.defineXML(defined)
        refused = capture.wish("mark", text="without its variables")
        assert "vars.fd cannot be read: No such file" in refused["error"]
        eventually(lambda: capture.state == "detached", "a VM without them is no copy of it")
        variables(guest).write_bytes(written)
        capture.follows()
        assert "point" in capture.wish("mark", text="with them")
        capture.stop()
        guest.raw.destroy()
        uuid, tpm = guest.domain.uuid, (tpm_state(guest) / "tpm2" / "tpm2-00.permall").read_bytes()
        place = tpm_state(guest)
        guest.raw.undefineFlags(WITH_ITS_FILES)
        assert not variables(guest).exists()
        shutil.rmtree(place, ignore_errors=True)  # libvirt takes it away since 8.9, unless told otherwise
        back = tmp_path / "back"
        back.mkdir()
        capture.program.restore("web1@with them", back)
        assert (back / "nvram.fd").read_bytes() == written
        shutil.copy(back / "nvram.fd", variables(guest))
        with tarfile.open(back / "tpm-state.tar") as tar:
            tar.extractall(place, filter="tar" if hasattr(tarfile, "tar_filter") else None)  # noqa: S202 - our own
        assert (place / "tpm2" / "tpm2-00.permall").read_bytes() == tpm
        guest.libvirtd.connection.defineXML((back / "domain.xml").read_text())
        assert guest.domain.uuid == uuid
        guest.start()
        assert variables(guest).read_bytes() == written, "it runs with those that came back"
