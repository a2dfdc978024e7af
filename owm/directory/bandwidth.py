"""Bandwidth, measured with other peers rather than claimed.

The prober asks a peer for a number of bytes on a bulk stream and times their arrival. Serving is bounded: one
probe per peer and interval, at most :data:`MAX_PROBE_BYTES` each, so that nobody can drain a peer's budget with it.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from typing import Final

import trio

from owm.clock import Clock
from owm.identity import PeerId
from owm.net import Network, Penalty, Stream
from owm.net.errors import NetworkError, ProtocolNotSupported

__all__ = ["MAX_PROBE_BYTES", "BandwidthService"]

MAX_PROBE_BYTES: Final = 4 * 2**20
_INTERVAL: Final = 600.0
_DEADLINE: Final = 30.0
_BLOCK: Final = bytes(64 * 1024)


class BandwidthService:
    """Answers probes, and probes others.

    Args:
        protocol: the protocol id on this network.
        probe_bytes: asked for per probe, at most MAX_PROBE_BYTES.
    """

    def __init__(self, network: Network, protocol: str, clock: Clock, probe_bytes: int = 2**20) -> None:
        self._network = network
        self._protocol = protocol
        self._clock = clock
        self._probe_bytes = min(probe_bytes, MAX_PROBE_BYTES)
        self._served: OrderedDict[PeerId, float] = OrderedDict()
        self._samples: OrderedDict[PeerId, float] = OrderedDict()
        network.handle(protocol, self._serve, max_streams=1)

    @property
    def mbps(self) -> float:
        """The median of the latest measurement with each of up to 16 peers, megabits per second; 0 before any."""
        return statistics.median(self._samples.values()) if self._samples else 0.0

    async def probe(self, peer: PeerId) -> float | None:
        """Measure with one connected peer; None when it would not or could not answer."""
        try:
            with trio.fail_after(_DEADLINE):
                async with await self._network.open_stream(peer, self._protocol, bulk=True) as stream:
                    await stream.send(self._probe_bytes.to_bytes(4, "big"))
                    await stream.close_write()
                    started = self._clock.monotonic()
                    received = 0
                    while chunk := await stream.receive(65536):
                        received += len(chunk)
                    elapsed = self._clock.monotonic() - started
        except (NetworkError, ProtocolNotSupported, trio.TooSlowError):
            return None
        if received < self._probe_bytes:
            return None
        rate = received * 8 / max(elapsed, 1e-6) / 1e6
        self._samples[peer] = rate
        self._samples.move_to_end(peer)
        if len(self._samples) > 16:
            self._samples.popitem(last=False)
        return rate

    async def _serve(self, stream: Stream) -> None:
        now = self._clock.monotonic()
        last = self._served.get(stream.remote)
        if last is not None and now - last < _INTERVAL:
            stream.reset()
            return
        self._served[stream.remote] = now
        self._served.move_to_end(stream.remote)
        if len(self._served) > 4096:
            self._served.popitem(last=False)
        with trio.move_on_after(_DEADLINE) as scope:
            head = b""
            while len(head) < 4:
                chunk = await stream.receive(4 - len(head))
                if not chunk:
                    return
                head += chunk
            wanted = int.from_bytes(head, "big")
            if wanted > MAX_PROBE_BYTES:
                self._network.penalise(stream.remote, Penalty.LOW_TOLERANCE, "bandwidth probe too large")
                stream.reset()
                return
            while wanted:
                size = min(wanted, len(_BLOCK))
                await stream.send(_BLOCK[:size])
                wanted -= size
        if scope.cancelled_caught:
            stream.reset()
