"""Faults on purpose, for tests: what a stream sends is delayed, dropped, damaged, or its connection cut or frozen.

Nothing here runs unless a :class:`Faults` is passed to the network: production streams pay one comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import TYPE_CHECKING

import trio

from owm.identity import PeerId
from owm.net.errors import StreamReset

if TYPE_CHECKING:
    from owm.net._muxed_stream import MuxedStream

__all__ = ["Fault", "FaultRule", "Faults"]


class Fault(Enum):
    """What happens to a message, that is, to the bytes of one ``send``."""

    DELAY = "delay"  #: it leaves later
    DROP = "drop"  #: it never leaves, and the sender is not told
    GARBAGE = "garbage"  #: as many random bytes leave in its place
    CUT_BEFORE = "cut before"  #: the connection breaks in its place
    CUT_AFTER = "cut after"  #: the connection breaks as soon as it is out
    BLACK_HOLE = "black hole"  #: from here on the connection says nothing and reads nothing, but stays open


@dataclass(slots=True)
class FaultRule:
    """When a fault strikes."""

    fault: Fault
    protocol: str | None = None  #: only on streams of this protocol
    peer: PeerId | None = None  #: only towards this peer
    after: int = 0  #: messages that pass unharmed first
    times: int = 1  #: how often it strikes
    seconds: float = 0.0  #: how long a delay is


class Faults:
    """The rules in force; the first that matches a message strikes.

    Args:
        random: for garbage.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._rules: list[FaultRule] = []
        self.struck = 0  #: faults so far

    def add(self, rule: FaultRule) -> None:
        self._rules.append(rule)

    def clear(self) -> None:
        """From now on all goes well."""
        self._rules.clear()

    async def outgoing(self, stream: MuxedStream, data: bytes) -> bytes:
        """What to send instead of ``data``.

        Raises:
            StreamReset: the connection was cut.
        """
        rule = self._match(stream)
        if rule is None:
            return data
        self.struck += 1
        connection = stream.connection
        match rule.fault:
            case Fault.DELAY:
                await trio.sleep(rule.seconds)
            case Fault.DROP:
                return b""
            case Fault.GARBAGE:
                return self._random.randbytes(len(data))
            case Fault.BLACK_HOLE:
                connection.freeze()
            case Fault.CUT_BEFORE:
                connection.kill("cut on purpose")
                raise StreamReset("the connection ended: cut on purpose")
            case Fault.CUT_AFTER:
                connection.mux.send(stream.id, data)
                await connection.drain()
                connection.kill("cut on purpose")
                raise StreamReset("the connection ended: cut on purpose")
        return data

    def _match(self, stream: MuxedStream) -> FaultRule | None:
        for rule in self._rules:
            if rule.protocol not in (None, stream.protocol) or rule.peer not in (None, stream.remote):
                continue
            if rule.after > 0:
                rule.after -= 1
            elif rule.times > 0:
                rule.times -= 1
                return rule
        return None
