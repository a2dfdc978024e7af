"""A network of real peer processes on the loopback: plan it, start it, wait for it, stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import trio

from owm.cli._local import PEER_FILE, PeerFile, read_peer_file
from owm.errors import TemporaryError

__all__ = ["Devnet", "Member", "plan"]

_START_SECONDS: Final = 90.0  #: for one peer to say that it runs
_JOIN_SECONDS: Final = 60.0  #: for a gateway to learn of a worker
_STOP_SECONDS: Final = 150.0  #: for peers to complete what they do: more than a query or a task may take
_POLL_SECONDS: Final = 0.1
_LOG_TAIL_BYTES: Final = 4096


@dataclass
class Member:
    """One peer of the devnet."""

    name: str
    roles: tuple[str, ...]
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    peer: PeerFile | None = None  #: once it runs

    @property
    def exit_code(self) -> int | None:
        return self.process.poll() if self.process else None

    def log_tail(self) -> str:
        """The end of the peer's log, for messages."""
        try:
            with (self.folder / "peer.log").open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""


def plan(folder: Path, workers: int, gateways: int) -> list[Member]:
    """Who takes part: the gateways first, then the workers. The first is who all others join through."""
    named = [(f"gateway-{i + 1}", ("gateway",)) for i in range(gateways)]
    named += [(f"worker-{i + 1}", ("worker",)) for i in range(workers)]
    return [Member(name, roles, folder / name) for name, roles in named]


@dataclass
class Devnet:
    """Starts members in order; each but the first is given only the first one's address."""

    members: list[Member]
    flags: Sequence[str] = ()  #: for every peer
    _stopping: bool = field(default=False, init=False)

    @property
    def gateway(self) -> Member:
        """The first gateway that runs."""
        for member in self.members:
            if member.peer and member.peer.api_url and member.exit_code is None:
                return member
        raise TemporaryError("no gateway of the devnet runs")

    @property
    def gateway_url(self) -> str:
        """The API of that gateway."""
        peer = self.gateway.peer
        assert peer is not None
        return peer.api_url

    async def start(self) -> None:
        """Start all and wait until each runs.

        Raises:
            TemporaryError: a peer ended or did not come up; the message holds the end of its log.
        """
        first, *others = self.members
        self._spawn(first, [])
        await self._wait(first)
        assert first.peer is not None
        addresses = [address for address in first.peer.addresses if "/ip4/127." in address] or list(
            first.peer.addresses
        )
        if not addresses:
            raise TemporaryError(f"{first.name} listens on no address")
        for member in others:
            self._spawn(member, ["--bootstrap", addresses[0]])
        async with trio.open_nursery() as nursery:
            for member in others:
                nursery.start_soon(self._wait, member)

    async def add(self, member: Member, through: str | None) -> None:
        """Start one more peer, or one that has ended.

        Args:
            through: the address of a peer that runs; None leaves it to what the peer remembers of an earlier run.

        Raises:
            TemporaryError: it ended or did not come up.
        """
        if member not in self.members:
            self.members.append(member)
        member.peer = None
        self._spawn(member, [] if through is None else ["--bootstrap", through])
        await self._wait(member)

    def _spawn(self, member: Member, flags: Sequence[str]) -> None:
        member.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (member.folder / PEER_FILE).unlink(missing_ok=True)
        command = [sys.executable, "-m", "owm", "peer", "--data-dir", str(member.folder), "--network", "devnet"]
        command += ["--listen", "127.0.0.1:0", "--health-port", "0", "--alias", member.name]
        command += ["--roles", ",".join(member.roles), "--log-format", "json", "--die-with", str(os.getpid())]
        if "gateway" in member.roles:
            command += ["--api-port", "0"]
        # Settings of the user's own peer must not reach the devnet; where the models lie may.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("OWM_") or k in _PASSED}
        with (member.folder / "peer.log").open("ab") as log:
            # A session of its own, so that Ctrl-C reaches only us and the peers are stopped in order. Started from the
            # main thread, because the kernel's parent-death signal follows the thread that started a process.
            member.process = subprocess.Popen(  # noqa: S603
                [*command, *self.flags, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )

    async def _wait(self, member: Member) -> None:
        assert member.process is not None
        with trio.move_on_after(_START_SECONDS):
            while True:
                found = read_peer_file(member.folder)
                if found is not None and found.pid == member.process.pid:
                    member.peer = found
                    return
                if member.exit_code is not None:
                    raise TemporaryError(
                        f"{member.name} ended with exit code {member.exit_code} while starting:\n{member.log_tail()}"
                    )
                await trio.sleep(_POLL_SECONDS)
        raise TemporaryError(
            f"{member.name} did not come up within {_START_SECONDS:.0f} s; the end of its log:\n{member.log_tail()}"
        )

    async def wait_usable(self) -> None:
        """Wait until the first gateway knows a worker that serves a model.

        Raises:
            TemporaryError: it learned of none in time, or it ended.
        """
        async with httpx.AsyncClient(timeout=5) as client:
            with trio.move_on_after(_JOIN_SECONDS):
                while True:
                    ended = [member for member in self.members if member.exit_code is not None]
                    if ended:
                        raise TemporaryError(f"{ended[0].name} ended while joining:\n{ended[0].log_tail()}")
                    if await _serves_a_model(client, self.gateway_url):
                        return
                    await trio.sleep(2 * _POLL_SECONDS)
        raise TemporaryError(f"the gateway learned of no worker within {_JOIN_SECONDS:.0f} s")

    async def stop(self) -> None:
        """Let every peer complete what it does, gateways before the workers that they need; then none is left.

        :meth:`kill` in the meantime ends it at once.
        """
        gateways = [member for member in self.members if "gateway" in member.roles]
        for members in (gateways, self.members):
            running = [m.process for m in members if m.process is not None and m.process.poll() is None]
            for process in running:
                process.send_signal(signal.SIGTERM)
            with trio.CancelScope(shield=True), trio.move_on_after(_STOP_SECONDS):
                while any(process.poll() is None for process in running):  # noqa: ASYNC110 - nothing tells of their end
                    await trio.sleep(_POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End every peer and what it started, now."""
        for member in self.members:
            if member.process is not None:
                if member.process.poll() is None:
                    member.process.kill()
                    member.process.wait()
                try:
                    os.killpg(member.process.pid, signal.SIGKILL)  # its engine, if that outlived it
                except (ProcessLookupError, PermissionError):
                    continue


_PASSED: Final = frozenset({"OWM_MODEL_CACHE_DIR", "OWM_LOG_LEVEL"})


async def _serves_a_model(client: httpx.AsyncClient, url: str) -> bool:
    try:
        response = await client.get(f"{url}/v1/network/stats")
        response.raise_for_status()
        found = response.json()
    except (httpx.HTTPError, ValueError):
        return False
    return isinstance(found, dict) and bool(found.get("workers"))
