# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a recovery plan says, and what is wrong in one."""

from __future__ import annotations

import pytest

from everywhen.services.ages import MINUTE, SECOND
from everywhen.services.failures import WrongUsage
from everywhen.services.returning.plan_file import Sign, Wait, parse_plan
from everywhen.services.returning.wishes import As

HEAD = '[default]\ndefine = "qemu:///system"\n'


def test_what_a_vm_does_not_say_is_the_default() -> None:
    plan = parse_plan(
        """
        [default]
        define = "qemu:///system"
        when = "2026-11-22 10:00"
        storage = "ssd"
        network = "lab"
        within = "90s"
        [[vm]]
        moment = "dc1"
        wait = "tcp:192.0.2.10:389"
        [[vm]]
        moment = "sql1@latest"
        as = "new"
        name = "sql1-b"
        storage = ["vda=ssd", "/srv/big/"]
        network = "none"
        machine = "pc-q35-7.2"
        wait = "agent"
        within = "2m"
        [[vm]]
        moment = "web1"
        start = false
        """,
        "plan.toml",
    )
    dc1, sql1, web1 = plan.vms
    assert plan.uri == "qemu:///system"
    assert [str(vm.address) for vm in plan.vms] == ["dc1@2026-11-22 10:00", "sql1@latest", "web1@2026-11-22 10:00"]
    assert [vm.storage for vm in plan.vms] == [("ssd",), ("vda=ssd", "/srv/big/"), ("ssd",)]
    assert [vm.network for vm in plan.vms] == ["lab", "none", "lab"]
    assert [vm.start for vm in plan.vms] == [True, True, False]
    assert (sql1.kind, sql1.name, sql1.machine) == (As.new, "sql1-b", "pc-q35-7.2")
    assert dc1.wait == Wait(Sign.tcp, 90 * SECOND, "192.0.2.10", 389)
    assert sql1.wait == Wait(Sign.agent, 2 * MINUTE)
    assert (web1.wait, web1.kind, web1.name) == (None, As.original, None)


def test_an_address_of_ip_version_6_is_one() -> None:
    (vm,) = parse_plan(HEAD + '[[vm]]\nmoment = "a"\nwait = "tcp:[2001:db8::1]:22"', "p").vms
    assert vm.wait == Wait(Sign.tcp, 5 * MINUTE, "2001:db8::1", 22)
    assert str(vm.wait) == "tcp:[2001:db8::1]:22"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[default", "no TOML"),
        ('[default]\nuri = "x"\ndefine = "q"\n[[vm]]\nmoment = "a"', '"uri"'),
        (HEAD + '[[vm]]\nmoment = "a"\nstorge = "ssd"', "Meant is storage?"),
        ('[defaults]\n[default]\ndefine = "q"\n[[vm]]\nmoment = "a"', "Meant is default?"),
        ('[[vm]]\nmoment = "a"', "where to"),
        (HEAD, "no VM"),
        (HEAD + '[vm]\nmoment = "a"', "a section [[vm]] for each"),
        (HEAD + '[[vm]]\nname = "a"', "which VM"),
        (HEAD + '[[vm]]\nmoment = ""', "moment is a text"),
        (HEAD + '[[vm]]\nmoment = "a/vda"', "not a whole VM"),
        (HEAD + '[[vm]]\nmoment = "group:erp"', "name its VMs"),
        (HEAD + '[[vm]]\nmoment = "a"\nas = "orignal"', "Meant is original?"),
        (HEAD + '[[vm]]\nmoment = "a"\nwait = "agnet"', "Meant is agent?"),
        (HEAD + '[[vm]]\nmoment = "a"\nwait = "tcp:a:70000"', "tcp:HOST:PORT"),
        (HEAD + '[[vm]]\nmoment = "a"\nwait = "agent"\nwithin = "soon"', "not a span of time"),
        (HEAD + '[[vm]]\nmoment = "a"\nwait = "agent"\nstart = false', "is not started"),
        (HEAD + '[[vm]]\nmoment = "a"\nstart = "yes"', "true or false"),
        (HEAD + '[[vm]]\nmoment = "a"\nstorage = 3', "storage is a text"),
        (HEAD + '[[vm]]\nmoment = "a"\n[[vm]]\nmoment = "a"', "twice"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(WrongUsage) as raised:
        parse_plan(text, "plan.toml")
    assert "plan.toml" in raised.value.what
    assert words in raised.value.what


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(WrongUsage) as raised:
        parse_plan('[default]\n[[vm]]\nmomnt = "a"\n', "plan.toml")
    assert raised.value.what == "3 things are wrong in plan.toml."
    assert any("Meant is moment?" in line for line in raised.value.do)
