"""Lazy gossip: telling others what we have, asking for what we lack, and holding peers to what they announce."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from owm.gossip._core_cache import Cached
from owm.gossip._core_state import Peer, Priority, State
from owm.gossip._core_wire import Message, Rpc

__all__ = ["LazyGossip"]

P = TypeVar("P", bound=Hashable)


class LazyGossip(Generic[P]):
    """IHAVE, IWANT and IDONTWANT, each bounded per peer and heartbeat (G2)."""

    __slots__ = ("_promises", "_state")

    def __init__(self, state: State[P]) -> None:
        self._state = state
        self._promises: dict[bytes, dict[P, float]] = {}  # id -> who promised it -> until when

    def on_ihave(self, peer: Peer[P], announced: tuple[tuple[str, tuple[bytes, ...]], ...], now: float) -> None:
        """Ask for what we have not seen; one id of those, drawn by lot, is held against the peer until it comes."""
        state, params = self._state, self._state.params
        if peer.score.value < params.score.gossip_threshold:
            return
        peer.count_in(state.tick)
        peer.ihaves += 1
        if peer.ihaves > params.max_ihave_messages or peer.asked >= params.max_ihave_ids:
            return
        wanted: dict[bytes, None] = {}
        for name, ids in announced:
            topic = state.topics.get(name)
            if topic is None or not topic.subscribed:
                continue
            for id_ in ids[: params.max_ihave_ids]:
                told = state.cache.told(id_)
                if told is not None:
                    told.add(peer.id)
                elif id_ not in state.seen:
                    wanted[id_] = None
        if not wanted:
            return
        chosen = list(wanted)
        state.random.shuffle(chosen)
        del chosen[params.max_ihave_ids - peer.asked :]
        peer.asked += len(chosen)
        promised = chosen[state.random.randrange(len(chosen))]
        self._promises.setdefault(promised, {}).setdefault(peer.id, now + params.iwant_followup)
        state.send(peer.id, Rpc(iwant=tuple(chosen)), Priority.GOSSIP)

    def on_iwant(self, peer: Peer[P], ids: tuple[bytes, ...]) -> None:
        """Give what is asked for, each message a few times at most."""
        state, params = self._state, self._state.params
        if peer.score.value < params.score.gossip_threshold:
            return
        peer.count_in(state.tick)
        room = params.max_iwant_ids - peer.served
        found: list[Message] = []
        size = 0
        for id_ in ids[: max(0, room)]:
            peer.served += 1
            message = state.cache.take(id_, peer.id, params.retransmissions)
            if message is None:
                continue
            size += len(message.data) + 512
            if found and size > params.max_rpc // 2:
                state.send(peer.id, Rpc(publish=tuple(found)), Priority.FORWARD)
                found, size = [], len(message.data)
            found.append(message)
        if found:
            state.send(peer.id, Rpc(publish=tuple(found)), Priority.FORWARD)

    def on_idontwant(self, peer: Peer[P], ids: tuple[bytes, ...]) -> None:
        """Remember what not to send to the peer, for a few heartbeats."""
        state, params = self._state, self._state.params
        until = state.tick + params.idontwant_heartbeats
        state.declined[peer.id] = peer
        for id_ in ids[: params.max_idontwant_ids - len(peer.dont_want)]:
            peer.dont_want[id_] = until

    def delivered(self, id_: bytes) -> None:
        """A promise is kept, whoever kept it."""
        if self._promises:
            self._promises.pop(id_, None)

    def heartbeat(self, now: float) -> None:
        """Blame broken promises, forget what peers did not want, announce what is new."""
        state = self._state
        if self._promises:
            self._blame(now)
        if state.declined:
            self._forget_declined()
        if len(state.cache):
            self._announce()
        state.cache.shift()

    def _forget_declined(self) -> None:
        state = self._state
        declined, state.declined = state.declined, {}
        for peer in declined.values():
            for id_ in [id_ for id_, until in peer.dont_want.items() if until <= state.tick]:
                del peer.dont_want[id_]
            if peer.dont_want and peer.id in state.peers:
                state.declined[peer.id] = peer

    def _announce(self) -> None:
        state, params = self._state, self._state.params
        outgoing: dict[P, list[tuple[str, tuple[bytes, ...]]]] = {}
        room: dict[P, int] = {}  # ids that a peer may still be told of: the bound is for its RPC, not for each topic
        for name, recent in state.cache.recent(params.history_gossip).items():
            topic = state.topics.get(name)
            if topic is None:
                continue
            peers = topic.outsiders()
            low = params.score.gossip_threshold
            if low > 0 or not state.scores.all_calm:
                peers = [peer for peer in peers if topic.peers[peer].score.value >= low]
            count = max(params.d_lazy, int(params.gossip_factor * len(peers)))
            if count < len(peers):
                peers = state.random.sample(peers, count)
            for peer in peers:
                news: list[Cached] = []
                for held in recent:
                    if peer not in held.told:  # neither told us nor heard from us: once is enough on reliable streams
                        news.append(held)
                if not news:
                    continue
                left = room.get(peer, params.max_ihave_ids)
                if len(news) > left:  # the others have their turn at the next heartbeat
                    news = state.random.sample(news, left)
                for held in news:
                    held.told.add(peer)
                if news:
                    outgoing.setdefault(peer, []).append((name, tuple([held.message.id for held in news])))
                    room[peer] = left - len(news)
        for peer, announced in outgoing.items():
            state.send(peer, Rpc(ihave=tuple(announced)), Priority.GOSSIP)

    def _blame(self, now: float) -> None:
        state = self._state
        for id_, promised in list(self._promises.items()):
            for peer_id in [peer_id for peer_id, until in promised.items() if until <= now]:
                del promised[peer_id]
                if peer := state.peers.get(peer_id):
                    state.misbehaved(peer, "a broken promise", now)
            if not promised:
                del self._promises[id_]
