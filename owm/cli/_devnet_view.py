"""The live table of a devnet."""

from __future__ import annotations

from typing import Any, Final

import httpx
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from owm.cli._devnet import Devnet, Member
from owm.cli._output import plain

__all__ = ["describe", "show_live"]

_REFRESH_SECONDS: Final = 1.0
_COLUMNS: Final = ("name", "roles", "peer", "pid", "connections", "model", "state")


async def describe(devnet: Devnet) -> list[dict[str, Any]]:
    """One object per peer, with what the peer itself says."""
    found: dict[str, dict[str, Any]] = {}
    async with httpx.AsyncClient(timeout=2) as client, trio.open_nursery() as nursery:
        for member in devnet.members:
            nursery.start_soon(_describe, client, member, found)
    return [found[member.name] for member in devnet.members]


async def _describe(client: httpx.AsyncClient, member: Member, found: dict[str, dict[str, Any]]) -> None:
    peer = member.peer
    row: dict[str, Any] = {
        "name": member.name,
        "roles": list(member.roles),
        "peer_id": peer.peer_id if peer else "",
        "pid": peer.pid if peer else None,
        "api_url": peer.api_url if peer else "",
        "health_url": peer.health_url if peer else "",
        "connections": None,
        "models": [],
        "state": "starting",
    }
    if member.exit_code is not None:
        row["state"] = f"ended ({member.exit_code})"
    elif peer is not None:
        try:
            response = await client.get(f"{peer.health_url}/local/status")
            status = response.json()
            row["connections"] = status.get("connections")
            row["models"] = list(status.get("models") or ())
            row["state"] = status.get("state") or "running"
        except (httpx.HTTPError, ValueError, AttributeError):
            row["state"] = "not answering"
    found[member.name] = row


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in ("pid", "connections") else "left")
    for row in rows:
        state = str(row["state"])
        style = "green" if state in ("ok", "running") else "red" if "ended" in state or "not" in state else "yellow"
        connections = "-" if row["connections"] is None else str(row["connections"])
        table.add_row(
            row["name"],
            ",".join(row["roles"]),
            row["peer_id"][-8:],
            str(row["pid"] or "-"),
            connections,
            Text(plain(", ".join(map(str, row["models"])) or "-")),
            Text(plain(state), style=style),
        )
    return table


async def show_live(devnet: Devnet, *, live: bool) -> None:
    """Show the peers until cancelled: live on a terminal, once elsewhere."""
    if not live:
        Console().print(_table(await describe(devnet)))
        await trio.sleep_forever()
    with Live(_table(await describe(devnet)), console=Console(), auto_refresh=False) as view:
        while True:
            await trio.sleep(_REFRESH_SECONDS)
            view.update(_table(await describe(devnet)), refresh=True)
