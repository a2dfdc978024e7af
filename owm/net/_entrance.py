"""From a byte stream to a connection with somebody: dialled or accepted, authenticated and admitted."""

from __future__ import annotations

from typing import Protocol

import structlog
import trio

from owm.clock import Clock
from owm.identity import PeerId
from owm.net._admission import HANDSHAKE_BYTES, Admission
from owm.net._core_noise import HandshakeFailed
from owm.net._limits import NetworkLimits
from owm.net._roster import Roster
from owm.net._secure import Credentials, Secured, secure
from owm.net._transport import Reach, dial_tcp, parse_endpoint, remote_multiaddr, tune
from owm.net.errors import DialFailed, NotDialled

__all__ = ["CameUp", "Entrance"]

_log = structlog.get_logger(__name__)


class CameUp(Protocol):
    """Told of each connection that may stay; raises DialFailed when the network has stopped."""

    def __call__(
        self, stream: trio.abc.Stream, secured: Secured, address: str, where: str, /, *, inbound: bool
    ) -> None:
        """``address`` is what is shown, ``where`` what counts for caps: the address behind a name."""


class Entrance:
    """Both ways into the network.

    Args:
        credentials: what we show.
        limits: how long a handshake may take.
        admission: who may come.
        roster: who is connected already.
        reach: opens byte streams to addresses that are not plain TCP.
        clock: for quotas and bans.
        came_up: told of each connection that may stay.
    """

    def __init__(
        self,
        credentials: Credentials,
        limits: NetworkLimits,
        admission: Admission,
        roster: Roster,
        reach: Reach | None,
        clock: Clock,
        came_up: CameUp,
    ) -> None:
        self._credentials = credentials
        self._limits = limits
        self._admission = admission
        self._roster = roster
        self._reach = reach
        self._clock = clock
        self._came_up = came_up
        self.dials = 0  #: attempts since start
        self.dials_failed = 0  #: of them, those that led to no connection
        self.handshakes_failed = 0  #: inbound connections that never authenticated

    async def dial(self, peer: PeerId | None, address: str) -> PeerId:
        """One attempt at one address; leaves nothing behind when it fails or is cancelled."""
        self.dials += 1
        try:
            endpoint = parse_endpoint(address)
            expected = peer if peer is not None else (endpoint.peer if endpoint else None)
            if endpoint is not None:
                if endpoint.peer not in (None, expected):
                    raise DialFailed("the address names another peer")
                stream: trio.abc.Stream = await dial_tcp(endpoint)
            elif self._reach is not None:
                stream = await self._reach(address)
            else:
                raise DialFailed("no way to reach that kind of address")
            if self._admission.budget is not None:
                self._admission.budget.charge(HANDSHAKE_BYTES, self._clock.monotonic())
            try:
                where = remote_multiaddr(stream) if isinstance(stream, trio.SocketStream) and endpoint else address
                return await self._authenticate(stream, expected, address, where)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
        except DialFailed:
            self.dials_failed += 1
            raise

    async def _authenticate(self, stream: trio.abc.Stream, expected: PeerId | None, address: str, where: str) -> PeerId:
        """The handshake of a dial, up to the live connection; the caller closes the stream on failure.

        ``where`` is what counts for caps: the address behind a name.
        """
        try:
            with trio.move_on_after(self._limits.handshake_timeout) as scope:
                secured = await secure(stream, self._credentials, initiator=True, expected=expected)
        except HandshakeFailed as error:
            raise DialFailed(str(error)) from error
        except trio.BrokenResourceError as error:
            raise DialFailed("the connection broke during the handshake") from error
        if scope.cancelled_caught:
            raise DialFailed(f"no handshake within {self._limits.handshake_timeout:g} s")
        remote = secured.remote
        if any(not end.inbound for end in self._roster.usable(remote)):
            await trio.aclose_forcefully(stream)
            return remote  # another address of the race was as fast
        refusal = self._admission.admit(remote, where, inbound=False, now=self._clock.monotonic())
        if refusal is not None:
            raise NotDialled(refusal)
        self._came_up(stream, secured, address, where, inbound=False)
        return remote

    async def serve(self, stream: trio.SocketStream) -> None:
        """One stranger, from accepting to the handshake's end; whatever it does concerns nobody else."""
        try:
            address = remote_multiaddr(stream)
        except OSError:
            return await trio.aclose_forcefully(stream)
        secured = await self._shake(stream, address)
        if secured is None:
            return await trio.aclose_forcefully(stream)
        for known in self._roster.all(secured.remote):
            known.ping()  # it may have died without a word
        if self._admission.admit(secured.remote, address, inbound=True, now=self._clock.monotonic()) is not None:
            return await trio.aclose_forcefully(stream)
        self._came_up(stream, secured, address, address, inbound=True)

    async def _shake(self, stream: trio.SocketStream, address: str) -> Secured | None:
        """The handshake of an inbound connection; None where it fails, takes too long, or others need its place."""
        scope = trio.CancelScope(deadline=trio.current_time() + self._limits.handshake_timeout)
        if self._admission.begin_handshake(scope, address, self._clock.monotonic()) is not None:
            return None
        if (other := self._admission.crowded_out()) is not None:
            assert isinstance(other, trio.CancelScope)
            other.cancel()
        reason = "too slow, or crowded out"
        try:
            with scope:
                tune(stream)
                return await secure(stream, self._credentials, initiator=False)
        except (HandshakeFailed, trio.BrokenResourceError) as error:
            reason = str(error) or type(error).__name__
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        finally:
            self._admission.end_handshake(scope)
        self.handshakes_failed += 1
        _log.debug("a handshake failed", address=address, error=reason)
        return None
