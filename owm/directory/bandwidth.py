"""Bandwidth, measured with other peers rather than claimed.

The prober asks a peer for a number of bytes on a bulk stream and times the arrival of their second half: by then the
windows of TCP and of the stream have grown, which on a fast long link takes longer than a megabyte. Serving is
bounded: one probe at a time, one per peer and interval, at most :data:`MAX_PROBE_BYTES` each and a hundred a day in
the long run, so that nobody, and no number of newcomers, can drain a peer's budget with it.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import trio

from owm.clock import Clock
from owm.identity import PeerId
from owm.net import Network, Penalty, Stream
from owm.net.errors import NetworkError, ProtocolNotSupported

__all__ = ["MAX_PROBE_BYTES", "BandwidthSample", "BandwidthService", "warm_rate"]

MAX_PROBE_BYTES: Final = 8 * 2**20
_INTERVAL: Final = 600.0
_BURST: Final = 32  #: probes of different peers served one after the other
_REFILL: Final = 900.0  #: seconds for one more
_DEADLINE: Final = 30.0
_ENOUGH_SECONDS: Final = 8.0  # what has come by then of a slow link's probe is enough
_LEAST_BYTES: Final = 128 * 1024  # fewer say nothing
_SAMPLES: Final = 16
_BLOCK: Final = bytes(64 * 1024)


class BandwidthSample(msgspec.Struct, frozen=True, array_like=True):
    """One measurement."""

    mbps: float  #: megabits per second
    time: float  #: unix seconds


def warm_rate(marks: Sequence[tuple[float, int]]) -> float:
    """Megabits per second over the second half of what came.

    Args:
        marks: seconds and bytes in all at each arrival, in order; at least one.
    """
    ended, received = marks[-1]
    began, before = next(mark for mark in marks if mark[1] >= received / 2)
    if before == received:  # it came in one piece
        began, before = 0.0, 0
    return (received - before) * 8 / max(ended - began, 1e-6) / 1e6


class BandwidthService:
    """Answers probes, and probes others.

    Args:
        protocol: the protocol id on this network.
        probe_bytes: asked for per probe, at most MAX_PROBE_BYTES.
    """

    def __init__(self, network: Network, protocol: str, clock: Clock, probe_bytes: int = MAX_PROBE_BYTES) -> None:
        self._network = network
        self._protocol = protocol
        self._clock = clock
        self._probe_bytes = min(probe_bytes, MAX_PROBE_BYTES)
        self._served: OrderedDict[PeerId, float] = OrderedDict()
        self._serving = False
        self._tokens = float(_BURST)
        self._refilled = clock.monotonic()
        self._samples: OrderedDict[PeerId, BandwidthSample] = OrderedDict()
        network.handle(protocol, self._serve, max_streams=1)

    @property
    def mbps(self) -> float:
        """Megabits per second; 0 before any measurement.

        The median of the better half of the latest measurements with up to 16 peers: a slow peer says little about us.
        """
        rates = sorted(sample.mbps for sample in self._samples.values())
        return statistics.median(rates[len(rates) // 2 :]) if rates else 0.0

    @property
    def samples(self) -> Mapping[PeerId, BandwidthSample]:
        """The latest measurement with each of up to 16 peers, the oldest first."""
        return self._samples

    def restore(self, samples: Iterable[tuple[PeerId, BandwidthSample]]) -> None:
        """Take in measurements of an earlier run."""
        for peer, sample in sorted(samples, key=lambda item: item[1].time):
            self._keep(peer, sample)

    async def probe(self, peer: PeerId) -> float | None:
        """Measure with one connected peer; None when it would not or could not answer."""
        started = self._clock.monotonic()
        marks = [(0.0, 0)]
        finished = False
        try:
            with trio.move_on_after(_ENOUGH_SECONDS):
                async with await self._network.open_stream(peer, self._protocol, bulk=True) as stream:
                    await stream.send(self._probe_bytes.to_bytes(4, "big"))
                    await stream.close_write()
                    while chunk := await stream.receive(65536):
                        marks.append((self._clock.monotonic() - started, marks[-1][1] + len(chunk)))
                finished = True
        except (NetworkError, ProtocolNotSupported):
            return None
        received = marks[-1][1]
        if received < (self._probe_bytes if finished else _LEAST_BYTES):
            return None
        rate = warm_rate(marks)
        self._keep(peer, BandwidthSample(rate, self._clock.time()))
        return rate

    def _keep(self, peer: PeerId, sample: BandwidthSample) -> None:
        self._samples[peer] = sample
        self._samples.move_to_end(peer)
        if len(self._samples) > _SAMPLES:
            self._samples.popitem(last=False)

    async def _serve(self, stream: Stream) -> None:
        now = self._clock.monotonic()
        last = self._served.get(stream.remote)
        self._tokens = min(_BURST, self._tokens + (now - self._refilled) / _REFILL)
        self._refilled = now
        too_soon = last is not None and now - last < _INTERVAL
        if self._serving or too_soon or self._tokens < 1:  # two at once would measure each other
            stream.reset()
            return
        self._tokens -= 1
        self._served[stream.remote] = now
        self._served.move_to_end(stream.remote)
        if len(self._served) > 4096:
            self._served.popitem(last=False)
        self._serving = True
        try:
            with trio.move_on_after(_DEADLINE) as scope:
                await self._answer(stream)
            if scope.cancelled_caught:
                stream.reset()
        finally:
            self._serving = False

    async def _answer(self, stream: Stream) -> None:
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
