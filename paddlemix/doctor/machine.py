# SPDX-License-Identifier: Apache-2.0
"""What the machine says of itself without paddle: cards, driver, CANN, network. Every place can be made up in tests."""

import re
import socket
from pathlib import Path

from paddlemix.doctor import versions
from paddlemix.doctor.findings import Finding, fail, note, ok
from paddlemix.utils import env, npu_environment
from paddlemix.utils.npu_cards import Cards, visible

ROOT = Path("/")
HEALTHY = "OK"
BUSY_SHARE = 0.15
"""A card whose memory is used by more than this before a start has a tenant; the driver itself keeps about 5 %."""


def card_findings(told: Cards, wanted: int = 0, *, idle: bool = False) -> list[Finding]:
    """Lines about the cards; ``wanted`` of them have to be there, and unused with ``idle``."""
    if told.problem:
        return [fail("cards", told.problem)]
    names = sorted({card.name for card in told.cards})
    sizes = sorted({card.memory for card in told.cards})
    text = f"{len(told.cards)} x {', '.join(names)}, {' or '.join(f'{size / 1024:.0f}' for size in sizes)} GB each"
    values = {"cards": [card.__dict__ for card in told.cards]}
    ours = visible(told.cards)
    if len(ours) < len(told.cards):
        text += f"; ASCEND_RT_VISIBLE_DEVICES leaves {len(ours)}"
    if len(ours) < wanted:
        return [fail("cards", f"{text}; {wanted} were asked for", **values)]
    found = [ok("cards", text, **values), *filter(None, map(versions.judge_chip, names))]
    for card in ours[: wanted or None]:  # what others do on the rest of the machine is their affair
        if card.health != HEALTHY:
            found.append(
                fail("health", f"card {card.number} is {card.health}: npu-smi info -t health -i {card.number}")
            )
        if idle and card.used > BUSY_SHARE * card.memory:
            found.append(
                fail("memory", f"card {card.number}: {card.used} of {card.memory} MB are in use; end the other process")
            )
    return found


def read_driver(root: Path = ROOT) -> str | None:
    """Version of the driver, from its file."""
    return _version(root / "usr/local/Ascend/driver/version.info", r"(?im)^version\s*=\s*(\S+)")


def read_cann(root: Path = ROOT) -> str | None:
    """Version of CANN, from its toolkit's folder (``ASCEND_TOOLKIT_HOME`` or the usual place)."""
    named = env.raw("ASCEND_TOOLKIT_HOME") or env.raw("ASCEND_HOME_PATH")
    home = Path(named) if named else root / "usr/local/Ascend/ascend-toolkit/latest"
    for path in (*sorted(home.glob("*/ascend_toolkit_install.info")), home / "ascend_toolkit_install.info"):
        version = _version(path, r"(?im)^version\s*=\s*(\S+)")
        if version:
            return version
    return _version(home / "version.cfg", r"(?i)toolkit_running_version=\[?([^\]\s]+)")


def _version(path: Path, pattern: str) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(pattern, text)
    return found.group(1).rpartition(":")[2] if found else None


def network_findings(interfaces: list[str] | None = None) -> list[Finding]:
    """Which interface HCCL would take between machines."""
    names = npu_environment.network_interfaces() if interfaces is None else interfaces
    usable = [name for name in names if name != "lo" and not name.startswith(("docker", "veth", "br-", "ifb"))]
    chosen = env.raw("HCCL_SOCKET_IFNAME") or env.raw("HCCL_IF_IP")
    values = {"interfaces": names}
    if chosen:
        return [ok("network", f"{', '.join(usable) or 'none'}; HCCL is told to use {chosen}", **values)]
    if len(usable) > 1:
        text = f"{', '.join(usable)}; for several machines choose one: HCCL_SOCKET_IFNAME=={usable[0]}"
        return [note("network", text, **values)]
    return [ok("network", ", ".join(usable) or "only the loopback: one machine", **values)]


def master_findings(address: str, rank: int) -> list[Finding]:
    """Can the ranks meet at ``host:port``? On rank 0 the port has to be free, elsewhere the name has to be known.

    IPv4 only: paddle's launcher takes addresses apart at the colon.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        return [fail("master", f'"{address}": expected host:port')]
    try:
        where = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)[0]
    except OSError as error:
        return [fail("master", _unknown(host, error))]
    if rank:
        return [ok("master", f"{host} is {where[4][0]}")]
    with socket.socket(where[0], socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where[4])
        except OSError as error:
            text = f"port {port} of {host} cannot be opened here ({error.strerror})"
            return [fail("master", f"{text}; set MASTER_PORT, and check that this machine is machine 0")]
    return [ok("master", f"{host}:{port} is free here")]


def _unknown(host: str, error: OSError) -> str:
    try:
        only = socket.getaddrinfo(host.strip("[]"), None, socket.AF_INET6)[0][4][0]
    except OSError:
        return f"{host}: the name is not known here ({error.strerror}); give the address of machine 0"
    return (
        f"{host}: its only address is {only}, and paddle's launcher takes no IPv6; give machine 0 an IPv4 address too"
    )
