"""Our DHT with every node in a process of its own; then with three in ten of them stopped as by SIGSTOP.

A stopped process keeps its sockets and answers nothing, which is the black hole that a crashed or frozen machine is.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import psutil
import structlog
import trio

from benchmarks._meter import Figures, Meter

__all__ = ["network"]

_NETWORK = "benchmark"


async def _node(seed: int) -> None:
    """Serve one node: a JSON command a line on stdin, a JSON answer a line on stdout."""
    from owm.clock import SystemClock
    from owm.dht import DhtParams, KademliaDht
    from owm.identity import Identity, PeerId
    from owm.net import NetworkLimits
    from owm.net.libp2p import Libp2pNetwork
    from owm.records import LogHead, sign_record

    identity = Identity(Random(seed).randbytes(32))
    net = Libp2pNetwork(identity, listen=["/ip4/127.0.0.1/tcp/0"], limits=NetworkLimits(exempt_local=True))
    dht = KademliaDht(
        net,
        network_id=_NETWORK,
        clock=SystemClock(),
        random=Random(seed),
        params=DhtParams(dial_back_groups=0),
        devnet=True,
        idle=600.0,
        keep=100,
        crowd=100,
    )

    async def do(name: str, argument: str) -> Any:
        key = argument.encode()
        match name:
            case "join":
                await net.connect(None, [argument])
                return await dht.bootstrap() >= 0
            case "bootstrap":
                return await dht.bootstrap() >= 0
            case "store":
                return await dht.provide(key) > 0
            case "read":
                return len(await dht.find_providers(key)) >= 1
            case "put":
                record = sign_record(
                    identity, LogHead(sequence=int(time.time() * 1000), size=1, root=b"r" * 32), _NETWORK
                )
                return record.dht_key.hex() if await dht.put(record) > 0 else ""
            case "get":
                return await dht.get(bytes.fromhex(argument)) is not None
            case _:
                return await dht.find_peer(PeerId.parse(argument)) is not None

    async with net.running(), dht.running():
        print(json.dumps({"address": net.addresses[0], "peer": str(identity.peer_id)}), flush=True)
        async for line in trio.lowlevel.FdStream(os.dup(0)):
            for command in line.splitlines():
                name, argument = json.loads(command)
                print(json.dumps(await do(name, argument)), flush=True)


class _Member:
    """A node's process, from outside."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.address = self.peer = ""
        self._buffer = b""
        self._turn = trio.Lock()

    @classmethod
    @asynccontextmanager
    async def running(cls, seed: int) -> AsyncIterator[_Member]:
        command = [sys.executable, "-m", "benchmarks._dht_processes", str(seed)]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        member = cls(process)
        try:
            hello = json.loads(await member._line())
            member.address, member.peer = hello["address"], hello["peer"]
            yield member
        finally:
            process.kill()

    async def do(self, name: str, argument: str = "") -> Any:
        assert self.process.stdin is not None
        async with self._turn:
            await self.process.stdin.send_all(json.dumps([name, argument]).encode() + b"\n")
            return json.loads(await self._line())

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            chunk = await self.process.stdout.receive_some()
            if not chunk:
                raise RuntimeError("a node ended")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


async def network(nodes: int, operations: int) -> Figures:
    """Stores and reads with all nodes alive, then reads and lookups with 30 % of them black-holed."""
    random = Random(1)
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(_Member.running(seed)) for seed in range(nodes)]
        for member in members[1:]:
            await member.do("join", members[0].address)
        for member in members:
            await member.do("bootstrap")
        processes = [psutil.Process(member.process.pid) for member in members]
        meter = Meter(lambda: sum(sum(process.cpu_times()[:2]) for process in processes))
        await meter.rest(trio.sleep)
        keys: list[str] = []

        async def store(n: int) -> bool:
            return bool(await members[n % nodes].do("store", f"key {n}"))

        async def read(n: int) -> bool:
            return bool(await random.choice(members).do("read", f"key {n}"))

        async def put(n: int) -> bool:
            keys.append(await members[n % nodes].do("put"))
            return bool(keys[-1])

        for name, call in (("store", store), ("read", read), ("put", put)):
            await meter.measure(name, [lambda n=n, call=call: call(n) for n in range(operations)])
        stopped = random.sample(range(1, nodes), round(0.3 * nodes))
        for number in stopped:
            members[number].process.send_signal(signal.SIGSTOP)
        alive = [member for number, member in enumerate(members) if number not in stopped]

        async def read_alive(n: int) -> bool:
            return bool(await random.choice(alive).do("read", f"key {n}"))

        async def get_alive(n: int) -> bool:
            return bool(await random.choice(alive).do("get", keys[n]))

        async def find_alive(_: int) -> bool:
            asker, wanted = random.sample(alive, 2)
            return bool(await asker.do("find_peer", wanted.peer))

        for name, call in (("find_providers", read_alive), ("get", get_alive), ("find_peer", find_alive)):
            title = f"30 % stopped, {name}"
            await meter.measure(title, [lambda n=n, call=call: call(n) for n in range(operations)])
    return meter.figures


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    from owm.peer import settle_memory

    settle_memory()
    trio.run(_node, int(sys.argv[1]))
