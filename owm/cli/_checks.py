"""What ``owm doctor`` looks at. Each check says what it found and, where something is wrong, the remedy."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal

import psutil

from owm.cli._local import read_peer_file
from owm.config import Effective, load_constitution
from owm.errors import ConfigError, IdentityError
from owm.identity import Identity

__all__ = ["Finding", "run_checks"]

_CONNECT_SECONDS: Final = 3.0
_MIB: Final = 2**20
_EXTRAS: Final = {"worker": ("xllamacpp", "numpy", "tokenizers"), "gateway": ("quart_trio", "hypercorn")}


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    name: str
    level: Literal["ok", "warning", "error"]
    detail: str
    remedy: str = ""


def run_checks(effective: Effective) -> Iterator[Finding]:
    """All findings, in the order in which one would repair them."""
    checks: tuple[Callable[[Effective], Iterator[Finding]], ...] = (
        _config,
        _identity,
        _disk,
        _memory,
        _packages,
        _ports,
        _bootstrap,
    )
    for check in checks:
        yield from check(effective)


def _config(effective: Effective) -> Iterator[Finding]:
    file = str(effective.path) if effective.path else "defaults, no file"
    try:
        network = load_constitution(effective.settings.network.profile)
    except ConfigError as error:
        yield Finding("settings", "error", str(error), "set network.profile")
        return
    yield Finding("settings", "ok", f"{file}; network {network.name}")
    if not effective.settings.node.roles:
        yield Finding("roles", "warning", "this peer does nothing for others", "set node.roles, or pass --roles")


def _identity(effective: Effective) -> Iterator[Finding]:
    try:
        identity = Identity.load(effective.identity_path)
    except IdentityError as error:
        missing = not effective.identity_path.exists()
        remedy = (
            "run `owm init`" if missing else f"run `chmod 600 {effective.identity_path}`, or restore it from a backup"
        )
        yield Finding("identity", "error", str(error), remedy)
    else:
        yield Finding("identity", "ok", str(identity.peer_id))


def _disk(effective: Effective) -> Iterator[Finding]:
    folder = effective.data_dir
    while not folder.exists():
        folder = folder.parent
    free = psutil.disk_usage(str(folder)).free // _MIB
    if not os.access(folder, os.W_OK):
        yield Finding("data folder", "error", f"{folder} cannot be written", "change its owner, or set node.data_dir")
    elif free < 512:
        yield Finding("data folder", "warning", f"only {free} MiB free at {folder}", "free some disk space")
    else:
        yield Finding("data folder", "ok", f"{free} MiB free at {folder}")


def _memory(effective: Effective) -> Iterator[Finding]:
    free = psutil.virtual_memory().available // _MIB
    if "worker" in effective.settings.node.roles and free < 768:
        remedy = "stop other programs, or lower model.slots and model.context"
        yield Finding("memory", "warning", f"{free} MiB available; a worker wants 768", remedy)
    else:
        yield Finding("memory", "ok", f"{free} MiB available")


def _packages(effective: Effective) -> Iterator[Finding]:
    for role in effective.settings.node.roles:
        missing = [name for name in _EXTRAS.get(role, ()) if find_spec(name) is None]
        if missing:
            remedy = f"pip install 'open-world-model[{role}]'"
            yield Finding(f"{role} packages", "error", f"missing: {', '.join(missing)}", remedy)
        else:
            yield Finding(f"{role} packages", "ok", "installed")


def _ports(effective: Effective) -> Iterator[Finding]:
    settings = effective.settings
    running = read_peer_file(effective.data_dir)
    if running is not None:
        yield Finding("ports", "ok", f"in use by the peer that runs here (pid {running.pid})")
        return
    wanted = [
        *(("network.listen_port", host, settings.network.listen_port) for host in settings.network.listen_hosts),
        ("health.port", "127.0.0.1", settings.health.port),
    ]
    if "gateway" in settings.node.roles:
        wanted.append(("api.port", settings.api.host, settings.api.port))
    for key, host, port in wanted:
        if port == 0:
            yield Finding(key, "ok", "chosen by the system")
            continue
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            yield Finding(key, "error", f"{host}:{port}: {error.strerror}", f"stop what uses it, or set {key}")
        else:
            yield Finding(key, "ok", f"{host}:{port} is free")


def _bootstrap(effective: Effective) -> Iterator[Finding]:
    addresses = effective.settings.network.bootstrap
    if not addresses:
        remedy = "set network.bootstrap to the address of any peer; the first peer of a network needs none"
        yield Finding("bootstrap", "warning", "no address to join through", remedy)
    for address in addresses:
        endpoint = _endpoint(address)
        if endpoint is None:
            remedy = "write it as /ip4/192.0.2.1/tcp/9000 or /dns4/example.org/tcp/9000"
            yield Finding("bootstrap", "error", f"{address} is not an address that can be dialled", remedy)
            continue
        try:
            socket.create_connection(endpoint, timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            remedy = "check the address, its firewall and your network; other addresses are tried too"
            yield Finding("bootstrap", "error", f"{address}: {error.strerror or error}", remedy)
        else:
            yield Finding("bootstrap", "ok", f"{address} accepts connections")


def _endpoint(address: str) -> tuple[str, int] | None:
    parts = address.strip("/").split("/")
    if (
        len(parts) >= 4
        and parts[0] in ("ip4", "ip6", "dns", "dns4", "dns6")
        and parts[2] == "tcp"
        and parts[3].isdigit()
    ):
        return parts[1], int(parts[3])
    return None
