# SPDX-License-Identifier: AGPL-3.0-or-later
"""Network cards, ports, consoles and the host's devices in libvirt's XML of a domain: for another host, or beside the original.

Sources: libvirt, formatdomain.html (network interfaces, graphical framebuffers, consoles, host device assignment).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree as ET

_OF_A_PORT = ("source", "target", "virtualport", "link", "script", "backend")
"""What says where a card's other end was: a port of a switch is one VM's."""
_OURS = "52:54:00"
"""The prefix that libvirt gives its own addresses."""


@dataclass(frozen=True, slots=True)
class Connected:
    """All cards are connected to this; `kind`: libvirt's `network`, or a `bridge` of the host."""

    name: str
    kind: str = "network"


@dataclass(frozen=True, slots=True)
class Unconnected:
    """No card is: its link is down, and at its other end is nothing."""


@dataclass(frozen=True, slots=True)
class AsBefore:
    """As the definition says."""


Network = Connected | Unconnected | AsBefore


def networks_of(root: ET.Element) -> list[Connected]:
    """The networks and bridges that cards of a domain are on, each once."""
    found = []
    for card in root.iterfind("devices/interface"):
        kind, source = card.get("type", ""), card.find("source")
        name = "" if source is None else source.get(kind, "")
        if kind in ("network", "bridge") and name and Connected(name, kind) not in found:
            found.append(Connected(name, kind))
    return found


def connect_cards(root: ET.Element, network: Network) -> int:
    """Where its cards lead to. How many it has."""
    cards = root.findall("devices/interface")
    for card in cards:
        if isinstance(network, AsBefore):
            continue
        for element in [one for one in card if one.tag in _OF_A_PORT]:
            card.remove(element)
        card.attrib.pop("trustGuestRxFilters", None)  # of macvtap alone
        if isinstance(network, Connected):
            card.set("type", network.kind)
            ET.SubElement(card, "source", {network.kind: network.name})
        else:
            # QEMU has no card that leads nowhere. This one would lead out by QEMU itself, if its link were up.
            card.set("type", "user")
            for element in card.findall("filterref"):
                card.remove(element)
            ET.SubElement(card, "link", {"state": "down"})
    return len(cards)


def new_addresses(root: ET.Element, randomness: Callable[[int], bytes]) -> None:
    """Each card gets a MAC address of its own, and no name of the host's end that another may have."""
    for card in root.iterfind("devices/interface"):
        address = card.find("mac")
        if address is None:
            address = ET.SubElement(card, "mac")
        address.set("address", ":".join([_OURS, *(f"{byte:02x}" for byte in randomness(3))]))
        for element in card.findall("target"):
            card.remove(element)


def own_ports(root: ET.Element) -> list[str]:
    """Screens get a port that is free when they are started: two VMs cannot have the same. What is to be said of screens."""
    said = []
    for screen in root.iterfind("devices/graphics"):
        if screen.get("passwd"):
            said.append(f"its {screen.get('type', 'screen')} screen has the password of the original's")
        if screen.get("autoport") == "no" and (port := screen.get("port")):
            said.append(f"its {screen.get('type', 'screen')} screen gets any free port; the original's is {port}")
            screen.attrib.pop("port", None)
            screen.attrib.pop("tlsPort", None)
            screen.set("autoport", "yes")
    return said


def forget_running(root: ET.Element) -> None:
    """What is said of a domain while it runs: names that libvirt gives, terminals, sockets and ports that were free."""
    root.attrib.pop("id", None)
    for parent in list(root.iter()):
        for element in [one for one in parent if one.tag == "alias" and not one.get("name", "").startswith("ua-")]:
            parent.remove(element)
    for label in root.findall("seclabel"):
        if label.get("type", "dynamic") == "dynamic":
            _forget_label(root, label)
    for device in root.iterfind("devices/*"):
        source = device.find("source")
        if source is None:
            continue
        if device.tag in ("serial", "console", "channel") and (device.get("type") == "pty" or _is_libvirts(device, source)):
            device.remove(source)
        if device.tag == "interface":
            for name in ("portid", "bridge") if device.get("type") == "network" else ():
                source.attrib.pop(name, None)
            for target in device.findall("target"):
                if target.get("dev", "").startswith("vnet"):
                    device.remove(target)
    for console in root.iterfind("devices/console"):
        console.attrib.pop("tty", None)
    for screen in root.iterfind("devices/graphics[@autoport='yes']"):
        screen.attrib.pop("port", None)
        screen.attrib.pop("tlsPort", None)


def _forget_label(root: ET.Element, label: ET.Element) -> None:
    for element in [one for one in label if one.tag in ("label", "imagelabel")]:
        label.remove(element)
    if not len(label):
        root.remove(label)  # it says what is so anyway


def _is_libvirts(device: ET.Element, source: ET.Element) -> bool:
    """Whether a socket's path is the one that libvirt gives a channel: it has the domain's name, and its number, in it."""
    target = device.find("target")
    name = "" if target is None else target.get("name", "")
    return (
        device.get("type") == "unix" and bool(name) and "/channel/" in (path := source.get("path", "")) and path.endswith(name)
    )


def host_devices(root: ET.Element) -> list[str]:
    """What of its host's hardware it has, in words."""
    found = [_of_host(device) for device in root.iterfind("devices/hostdev")]
    found += ["a network card of its host" for _ in root.iterfind("devices/interface[@type='hostdev']")]
    return found


def drop_host_devices(root: ET.Element) -> None:
    """Take them out: only one VM can have them."""
    devices = root.find("devices")
    if devices is not None:
        for device in [*devices.findall("hostdev"), *devices.findall("interface[@type='hostdev']")]:
            devices.remove(device)


def host_folders(root: ET.Element) -> list[str]:
    """Folders of its host that its guest sees: they are in no backup of it."""
    sources = [folder.find("source") for folder in root.iterfind("devices/filesystem")]
    return [path for source in sources if source is not None and (path := source.get("dir") or source.get("socket"))]


def _of_host(device: ET.Element) -> str:
    kind, address = device.get("type", "device"), device.find("source/address")
    if kind == "pci" and address is not None:
        parts = [address.get(name, "0x0")[2:] for name in ("domain", "bus", "slot", "function")]
        return "PCI device {}:{}:{}.{}".format(*(part.zfill(length) for part, length in zip(parts, (4, 2, 2, 1), strict=True)))
    vendor, product = device.find("source/vendor"), device.find("source/product")
    if vendor is not None and product is not None:
        return f"{kind.upper()} device {vendor.get('id', '?')[2:]}:{product.get('id', '?')[2:]}"
    return f"{kind.upper()} device of its host"
