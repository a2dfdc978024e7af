"""Fuzz target: a Yamux connection that is fed anything, in pieces, and answers. ``python -m tests.fuzz.fuzz_yamux``."""

from __future__ import annotations

from owm.net._core_yamux import CONNECTION_QUEUE, DataReceived, Opened, Yamux, YamuxError


def fuzz_one(data: bytes) -> None:
    """The first byte says in which pieces the rest arrives. Only YamuxError may come out; what is kept is bounded."""
    if not data:
        return
    mux = Yamux(initiator=False, max_inbound=8)
    ours = mux.open()
    mux.send(ours, b"hello")
    step, wire = data[0] + 1, data[1:]
    received = 0
    try:
        for at in range(0, len(wire), step):
            for event in mux.receive(wire[at : at + step]):
                if isinstance(event, Opened):
                    mux.send(event.stream_id, b"answer") if event.stream_id in mux else None
                elif isinstance(event, DataReceived):
                    received += len(event.data)
                    mux.consume(event.stream_id, len(event.data), now=float(at))
            mux.take()
    except YamuxError:
        pass
    assert received <= len(wire)
    assert len(mux) <= 9
    assert 0 <= mux.queued <= CONNECTION_QUEUE


if __name__ == "__main__":
    from tests.fuzz import main

    main(fuzz_one)
