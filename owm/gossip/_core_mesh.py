"""The meshes: who is in them, how they are mended, and what GRAFT and PRUNE do (gossipsub v1.1)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from owm.gossip._core_state import Exchange, Peer, Priority, State, Topic
from owm.gossip._core_wire import Prune, Rpc

__all__ = ["Meshes"]

P = TypeVar("P", bound=Hashable)


class Meshes(Generic[P]):
    """Joins, leaves and mends the mesh of each topic."""

    __slots__ = ("_state",)

    def __init__(self, state: State[P]) -> None:
        self._state = state

    def join(self, topic: Topic[P], now: float) -> None:
        """Graft the peers of the fan-out, then others, up to D; never within a back-off (ours or theirs, G3)."""
        state = self._state
        topic.subscribed = True
        topic.changed()
        chosen = [p for p in topic.fanout.values() if p.score.value >= 0 and p.id not in topic.backoff]
        topic.fanout.clear()
        chosen += self._candidates(topic, now, set(p.id for p in chosen))[: max(0, state.params.d - len(chosen))]
        for peer in chosen[: state.params.d]:
            self.graft(topic, peer, now)
            state.send(peer.id, Rpc(graft=(topic.name,)), Priority.CONTROL)

    def leave(self, topic: Topic[P], now: float) -> None:
        """Prune everybody; who was pruned is not grafted again before the back-off that we announced is over."""
        params = self._state.params
        topic.subscribed = False
        for peer in list(topic.mesh.values()):
            self._drop(topic, peer, now, params.unsubscribe_backoff)
            prune = Prune(topic.name, int(params.unsubscribe_backoff))
            self._state.send(peer.id, Rpc(prune=(prune,)), Priority.CONTROL)

    def on_graft(self, peer: Peer[P], names: Iterable[str], now: float) -> None:
        """A peer put us in its mesh: take it into ours, or refuse with a PRUNE and say whom else to ask."""
        state, params = self._state, self._state.params
        prunes: list[Prune] = []
        for name in dict.fromkeys(names):  # py-libp2p may name a topic twice
            topic = state.topics.get(name)
            if topic is None or not topic.subscribed:
                continue  # answering would only help who floods unknown topics
            if peer.id in topic.mesh:
                continue
            if peer.id not in topic.peers:  # a mesh has subscribers only: who never subscribed would never be removed
                prunes.append(self._prune(topic, peer, exchange=False))
                continue
            until = topic.backoff.get(peer.id)
            if until is not None and now < until:
                if peer.id in topic.unsaid:
                    del topic.unsaid[peer.id]  # it is told now
                else:
                    state.misbehaved(peer, "GRAFT during back-off", now)
                    if now < until - params.prune_backoff + params.graft_flood:
                        state.misbehaved(peer, "GRAFT flood", now)
                topic.backoff[peer.id] = now + params.prune_backoff
                prunes.append(self._prune(topic, peer, exchange=False))
            elif peer.score.value < 0:
                topic.backoff[peer.id] = now + params.prune_backoff
                prunes.append(self._prune(topic, peer, exchange=False))
            elif len(topic.mesh) >= params.d_high and not peer.outbound:
                topic.backoff[peer.id] = now + params.prune_backoff
                prunes.append(self._prune(topic, peer, exchange=True))
            else:
                self.graft(topic, peer, now)
        state.send_meshing(peer.id, [], prunes)

    def on_prune(self, peer: Peer[P], prunes: Iterable[Prune], now: float) -> None:
        """A peer took us out of its mesh; the back-off is honoured up to its cap (G4)."""
        state, params = self._state, self._state.params
        for prune in prunes:
            topic = state.topics.get(prune.topic)
            if topic is None:
                continue
            backoff = min(float(prune.backoff), params.max_backoff) if prune.backoff else params.prune_backoff
            if not prune.backoff and topic.subscribed and topic.backoff.get(peer.id, 0.0) <= now:
                topic.unsaid[peer.id] = None
            if peer.id in topic.mesh:
                self._drop(topic, peer, now, backoff)
            elif topic.subscribed:
                topic.backoff[peer.id] = max(topic.backoff.get(peer.id, 0.0), now + backoff)
            if not prune.peers or not topic.subscribed or len(topic.mesh) >= params.d:
                continue  # more peers are no use to us now
            if state.scores.settle(peer.score) >= params.score.exchange_threshold:
                state.effects.append(Exchange(peer.id, prune.peers[: params.exchange_peers]))

    def remove(self, topic: Topic[P], peer: Peer[P], now: float) -> None:
        """The peer is gone, or no longer subscribed."""
        topic.peers.pop(peer.id, None)
        topic.changed()
        topic.fanout.pop(peer.id, None)
        if topic.mesh.pop(peer.id, None) is not None:
            self._state.scores.pruned(peer.score, topic.name, now)
        self._state.forget_if_unused(topic)

    def tell_again(self, peer: Peer[P], now: float) -> None:
        """Repeat our subscriptions, and where the peer is in or out of our meshes."""
        state = self._state
        known = [name for name, topic in state.topics.items() if topic.subscribed or name in peer.topics]
        if known:
            subscriptions = tuple((name, state.topics[name].subscribed) for name in known)
            state.send(peer.id, Rpc(subscriptions=subscriptions), Priority.OWN)
        grafts: list[str] = []
        prunes: list[Prune] = []
        for name in peer.topics:
            topic = state.topics[name]
            until = topic.backoff.get(peer.id, 0.0)
            if peer.id in topic.mesh:
                grafts.append(name)
            elif until > now:
                prunes.append(Prune(name, max(1, math.ceil(until - now))))
        state.send_meshing(peer.id, grafts, prunes)

    def maintain(self, now: float) -> None:
        """The heartbeat's work on every mesh and fan-out."""
        state = self._state
        grafts: dict[P, list[str]] = {}
        prunes: dict[P, list[Prune]] = {}
        opportune = state.tick % state.params.opportunistic_ticks == 0
        for topic in list(state.topics.values()):
            if topic.backoff:
                for peer_id in [peer_id for peer_id, until in topic.backoff.items() if until <= now]:
                    del topic.backoff[peer_id]
                    topic.unsaid.pop(peer_id, None)
                    topic.mended = False
            if topic.subscribed:
                if opportune or not (topic.mended and state.scores.all_calm):
                    self._mend(topic, now, opportune, grafts, prunes)
                continue
            if topic.fanout:
                self._keep_fanout(topic, now)
            state.forget_if_unused(topic)
        for peer_id, names in grafts.items():
            state.send_meshing(peer_id, names, prunes.pop(peer_id, []))
        for peer_id, some in prunes.items():
            state.send_meshing(peer_id, [], some)

    def _mend(
        self, topic: Topic[P], now: float, opportune: bool, grafts: dict[P, list[str]], prunes: dict[P, list[Prune]]
    ) -> None:
        params, mesh = self._state.params, topic.mesh
        # Unless something below changes it: who scores badly now may be a candidate next time.
        topic.mended = self._state.scores.all_calm

        def graft(peers: Iterable[Peer[P]]) -> None:
            for peer in peers:
                self.graft(topic, peer, now)
                grafts.setdefault(peer.id, []).append(topic.name)

        def prune(peers: Iterable[Peer[P]], exchange: bool) -> None:
            for peer in peers:
                self._drop(topic, peer, now, params.prune_backoff)
                prunes.setdefault(peer.id, []).append(self._prune(topic, peer, exchange))

        outbound = 0
        bad: list[Peer[P]] = []
        for peer in mesh.values():
            if peer.score.value < 0:
                bad.append(peer)
            elif peer.outbound:
                outbound += 1
        if bad:
            prune(bad, exchange=False)
        if len(mesh) < params.d_low:
            graft(self._candidates(topic, now)[: params.d - len(mesh)])
            outbound = sum(peer.outbound for peer in mesh.values())
        elif len(mesh) > params.d_high:
            keep = self._best(topic)
            prune([peer for peer in mesh.values() if peer.id not in keep], exchange=True)
            outbound = sum(peer.outbound for peer in mesh.values())
        if outbound < params.d_out and len(mesh) >= params.d_low:
            others = [peer for peer in self._candidates(topic, now) if peer.outbound]
            graft(others[: params.d_out - outbound])
        if mesh and opportune:
            settle = self._state.scores.settle
            scores = sorted(settle(peer.score) for peer in mesh.values())
            median = scores[len(scores) // 2]
            if median < params.score.opportunistic_threshold:
                better = [peer for peer in self._candidates(topic, now) if settle(peer.score) > median]
                graft(better[: params.opportunistic_peers])

    def _best(self, topic: Topic[P]) -> set[P]:
        """Whom to keep of a mesh that is too large: D_score by score, the others by chance, D_out of them outbound."""
        params, random = self._state.params, self._state.random
        peers = list(topic.mesh.values())
        random.shuffle(peers)
        peers.sort(key=lambda peer: -self._state.scores.settle(peer.score))
        rest = peers[params.d_score :]
        random.shuffle(rest)
        order = peers[: params.d_score] + rest
        keep, others = order[: params.d], order[params.d :]
        missing = params.d_out - sum(peer.outbound for peer in keep)
        for peer in [peer for peer in others if peer.outbound][: max(0, missing)]:
            worst = next(i for i in range(len(keep) - 1, -1, -1) if not keep[i].outbound)
            keep[worst] = peer
        return {peer.id for peer in keep}

    def _keep_fanout(self, topic: Topic[P], now: float) -> None:
        params = self._state.params
        if topic.fanout_until <= now:
            topic.fanout.clear()
            return
        low = params.score.publish_threshold
        for peer in [peer for peer in topic.fanout.values() if peer.score.value < low]:
            del topic.fanout[peer.id]
        if len(topic.fanout) < params.d:
            self.fill_fanout(topic)

    def fill_fanout(self, topic: Topic[P]) -> None:
        """Choose peers to publish to on a topic that we are not subscribed to."""
        params = self._state.params
        missing = params.d - len(topic.fanout)
        low = params.score.publish_threshold
        found = [p for p in topic.peers.values() if p.id not in topic.fanout and p.score.value >= low]
        for peer in self._sample(found, missing):
            topic.fanout[peer.id] = peer

    def _candidates(self, topic: Topic[P], now: float, without: Iterable[P] = ()) -> list[Peer[P]]:
        mesh, backoff = topic.mesh, topic.backoff
        found = [
            peer
            for peer in topic.peers.values()
            if peer.id not in mesh
            and peer.id not in without
            and peer.score.value >= 0
            and backoff.get(peer.id, 0.0) <= now
        ]
        self._state.random.shuffle(found)
        return found

    def _sample(self, peers: list[Peer[P]], count: int) -> list[Peer[P]]:
        return self._state.random.sample(peers, count) if count < len(peers) else peers

    def graft(self, topic: Topic[P], peer: Peer[P], now: float) -> None:
        """Take a peer into our mesh, without telling it."""
        topic.mesh[peer.id] = peer
        topic.changed()
        self._state.scores.grafted(peer.score, topic.name, now)

    def _drop(self, topic: Topic[P], peer: Peer[P], now: float, backoff: float) -> None:
        del topic.mesh[peer.id]
        topic.changed()
        topic.backoff[peer.id] = max(topic.backoff.get(peer.id, 0.0), now + backoff)
        self._state.scores.pruned(peer.score, topic.name, now)

    def _prune(self, topic: Topic[P], peer: Peer[P], exchange: bool) -> Prune:
        params, lookup = self._state.params, self._state.peer_record
        others: list[tuple[bytes, bytes]] = []
        if exchange and lookup is not None and peer.score.value >= 0:
            good = [other for other in topic.peers.values() if other is not peer and other.score.value >= 0]
            for other in self._sample(good, params.exchange_peers):
                record = lookup(other.id)
                if record is not None and isinstance(other.id, bytes):
                    others.append((bytes(other.id), record))
        return Prune(topic.name, int(params.prune_backoff), tuple(others))
