"""What the specification says of meshes, gossip and scores, one behaviour at a time; no I/O, no clock."""

from __future__ import annotations

from random import Random

import pytest

from owm.gossip._core import GossipCore, Verdict
from owm.gossip._core_params import GossipParams, ScoreParams, TopicScoreParams
from owm.gossip._core_state import Deliver, Exchange, SendRpc, Validate
from owm.gossip._core_wire import Message, Prune, Rpc
from tests.gossip._net import TOPIC, honest_net, message, named


def core(params: GossipParams | None = None, peers: int = 0, **kwargs: object) -> GossipCore[int]:
    made: GossipCore[int] = GossipCore(0, params or GossipParams(), Random(1), named, **kwargs)  # type: ignore[arg-type]
    made.subscribe(TOPIC, 0.0)
    for peer in range(1, peers + 1):
        arrive(made, peer)
    return made


def arrive(
    made: GossipCore[int], peer: int, now: float = 0.0, *, outbound: bool = False, group: str | None = None
) -> None:
    made.peer_up(peer, now, outbound=outbound, group=group)
    made.receive_rpc(peer, Rpc(subscriptions=((TOPIC, True),)), now)


def to(effects: list[object]) -> dict[int, list[Rpc]]:
    found: dict[int, list[Rpc]] = {}
    for effect in effects:
        if isinstance(effect, SendRpc):
            found.setdefault(effect.peer, []).append(effect.rpc)
    return found


def judge(made: GossipCore[int], peer: int, found: Message, verdict: Verdict, now: float = 0.0) -> list[object]:
    effects: list[object] = list(made.receive_rpc(peer, Rpc(publish=(found,)), now))
    if any(isinstance(effect, Validate) for effect in effects):
        effects += made.validated(named(found), verdict, now)
        effects += made.forward(now + made.params.forward_delay)
    return effects


def test_a_newcomer_is_told_our_topics() -> None:
    made = core()
    rpcs = to(made.peer_up(1, 0.0))[1]
    assert rpcs[0].subscriptions == ((TOPIC, True),)


def test_a_mesh_grows_to_d_and_no_further_by_itself() -> None:
    made = core(peers=30)
    for beat in range(5):
        made.heartbeat(float(beat))
    assert made.params.d_low <= len(made.mesh(TOPIC)) <= made.params.d_high


def test_a_mesh_that_grew_too_large_is_cut_to_d_and_the_others_are_told_whom_else_to_ask() -> None:
    made = core(GossipParams(), peers=0, peer_record=lambda peer: b"record of %d" % peer)
    for peer in range(1, 12 + 1):
        arrive(made, peer)
        made.receive_rpc(peer, Rpc(graft=(TOPIC,)), 0.0)
    assert len(made.mesh(TOPIC)) == made.params.d_high
    refused = to(made.receive_rpc(arrive(made, 50) or 50, Rpc(graft=(TOPIC,)), 0.0))
    assert refused[50][0].prune[0].backoff == 60
    made.peer_up(99, 0.0, outbound=True)
    made.receive_rpc(99, Rpc(subscriptions=((TOPIC, True),), graft=(TOPIC,)), 0.0)
    assert 99 in made.mesh(TOPIC), "peers that we dialled may exceed D_high"
    pruned = {peer: rpcs for peer, rpcs in to(made.heartbeat(1.0)).items() if any(rpc.prune for rpc in rpcs)}
    assert len(made.mesh(TOPIC)) == made.params.d
    assert len(pruned) == 13 - made.params.d
    assert 99 in made.mesh(TOPIC), "D_out of those that stay are outbound"


def test_a_prune_is_honoured_and_its_exchange_taken_only_from_the_trusted() -> None:
    others = ((b"peer", b"record"),)
    made = core(GossipParams(score=ScoreParams(exchange_threshold=5.0)), peers=2)
    made.receive_rpc(1, Rpc(graft=(TOPIC,)), 0.0)
    effects = made.receive_rpc(1, Rpc(prune=(Prune(TOPIC, 30, others),)), 0.0)
    assert 1 not in made.mesh(TOPIC)
    assert not any(isinstance(effect, Exchange) for effect in effects)
    made.set_application_score(2, 10.0, 0.0)
    effects = made.receive_rpc(2, Rpc(prune=(Prune(TOPIC, 30, others),)), 0.0)
    assert [effect.peers for effect in effects if isinstance(effect, Exchange)] == [others]


def test_a_peer_that_pruned_us_without_a_back_off_is_told_of_one_before_it_is_blamed() -> None:
    """What py-libp2p does: it prunes, grafts again a second later, and names the topic twice."""
    made = core(GossipParams(score=ScoreParams(behaviour_threshold=0.0)), peers=1)
    made.receive_rpc(1, Rpc(graft=(TOPIC,)), 0.0)
    made.receive_rpc(1, Rpc(prune=(Prune(TOPIC, 0),)), 1.0)
    refused = to(made.receive_rpc(1, Rpc(graft=(TOPIC, TOPIC)), 2.0))
    assert [prune.backoff for rpc in refused[1] for prune in rpc.prune] == [60]
    assert made.mesh(TOPIC) == () and made.score(1) == 0
    made.receive_rpc(1, Rpc(prune=(Prune(TOPIC, 0),), graft=(TOPIC,)), 3.0)
    assert made.score(1) < 0, "now it knows"


def test_messages_go_to_the_mesh_and_not_back() -> None:
    made = core(peers=6)
    made.heartbeat(0.0)
    mesh = set(made.mesh(TOPIC))
    source = next(iter(mesh))
    effects = judge(made, source, message(1), Verdict.ACCEPT)
    assert set(to(effects)) == mesh - {source}
    assert sum(isinstance(effect, Deliver) for effect in effects) == 1


def test_who_sends_us_a_copy_before_we_forward_gets_none() -> None:
    made = core(peers=6)
    made.heartbeat(0.0)
    source, early, *others = made.mesh(TOPIC)
    made.receive_rpc(source, Rpc(publish=(message(1),)), 1.0)
    accepted = made.validated(named(message(1)), Verdict.ACCEPT, 1.0)
    assert any(isinstance(effect, Deliver) for effect in accepted), "our own subscribers do not wait"
    assert to(accepted) == {}
    assert 1.0 < made.next_forward <= 1.0 + made.params.forward_delay
    made.receive_rpc(early, Rpc(publish=(message(1),)), 1.0)
    assert made.forward(1.0) == [], "not before its time"
    assert set(to(made.forward(made.next_forward))) == set(others)
    assert made.next_forward == float("inf")
    assert made.held()["forwards"] == 0


def test_what_is_held_goes_along_in_one_rpc_for_each_peer() -> None:
    made = core(peers=6)
    made.heartbeat(0.0)
    source, other, *rest = made.mesh(TOPIC)
    for number, sender in ((1, source), (2, source), (3, other)):
        made.receive_rpc(sender, Rpc(publish=(message(number),)), 1.0)
        made.validated(named(message(number)), Verdict.ACCEPT, 1.0)
    sent = to(made.forward(made.next_forward))
    contents = {peer: [[m.data for m in rpc.publish] for rpc in rpcs] for peer, rpcs in sent.items()}
    first, second, third = (message(number).data for number in (1, 2, 3))
    assert contents == {source: [[third]], other: [[first, second]], **{p: [[first, second, third]] for p in rest}}
    assert len({id(sent[peer][0]) for peer in rest}) == 1, "what is the same is encoded once"
    assert made.next_forward == float("inf") and made.held()["forwards"] == 0


def test_the_busier_the_topic_the_more_messages_wait_for_each_other() -> None:
    made = core(peers=6)
    made.heartbeat(0.0)
    source = made.mesh(TOPIC)[0]
    longest: list[float] = []
    number = 0
    for size in (1, 3, 50, 1, 1):
        waits: list[float] = []
        for _ in range(40):
            made.forward(float("inf"))
            for _ in range(size):
                number += 1
                made.receive_rpc(source, Rpc(publish=(message(number),)), float(number))
                made.validated(named(message(number)), Verdict.ACCEPT, float(number))
                if made.held()["forwards"] == 1:
                    waits.append(made.next_forward - number)
        longest.append(max(waits[1:]))
    params = made.params
    assert params.forward_delay / 2 < longest[0] <= params.forward_delay
    assert params.forward_delay < longest[1] <= 3 * params.forward_delay
    assert 3 * params.forward_delay < longest[2] <= params.forward_delay_busy
    assert longest[3] <= params.forward_delay and longest[4] <= params.forward_delay


def test_large_messages_that_go_along_are_spread_over_rpcs_within_their_bound() -> None:
    made = core(GossipParams(max_rpc=20_000, idontwant_bytes=10**6), peers=4)
    made.heartbeat(0.0)
    source, *others = made.mesh(TOPIC)
    for number in range(9):
        made.receive_rpc(source, Rpc(publish=(message(number, 3000),)), 1.0)
        made.validated(named(message(number, 3000)), Verdict.ACCEPT, 1.0)
    sent = to(made.forward(made.next_forward))
    for peer in others:
        assert [len(rpc.publish) for rpc in sent[peer]] == [3, 3, 3]
        assert all(len(rpc.encode()) <= 20_000 for rpc in sent[peer])


def test_without_a_delay_messages_are_forwarded_at_once() -> None:
    made = core(GossipParams(forward_delay=0.0), peers=6)
    made.heartbeat(0.0)
    source, *others = made.mesh(TOPIC)
    made.receive_rpc(source, Rpc(publish=(message(1),)), 1.0)
    assert set(to(made.validated(named(message(1)), Verdict.ACCEPT, 1.0))) == set(others)
    assert made.next_forward == float("inf")


@pytest.mark.parametrize("verdict", [Verdict.IGNORE, Verdict.REJECT])
def test_what_is_not_accepted_goes_nowhere(verdict: Verdict) -> None:
    made = core(peers=6)
    made.heartbeat(0.0)
    effects = judge(made, 1, message(1), verdict)
    assert not any(isinstance(effect, SendRpc | Deliver) for effect in effects)
    assert (made.score(1) < 0) == (verdict is Verdict.REJECT)


def test_an_own_message_is_sent_to_so_many_peers_at_most_subscribed_or_not() -> None:
    params = GossipParams(flood_max=8)
    for subscribes in (True, False):
        made: GossipCore[int] = GossipCore(0, params, Random(1), named)
        if subscribes:
            made.subscribe(TOPIC, 0.0)
        for peer in range(1, 31):
            arrive(made, peer)
        made.heartbeat(0.0)
        assert len(to(made.publish(message(1), 0.5))) == 8


def test_flood_publishing_reaches_everybody_who_scores_well_enough() -> None:
    made = core(peers=20)
    made.heartbeat(0.0)
    made.set_application_score(7, -60.0, 0.0)
    sent = to(made.publish(message(1), 1.0))
    assert set(sent) == set(range(1, 21)) - {7}
    quiet = core(GossipParams(flood_publish=False), peers=20)
    quiet.heartbeat(0.0)
    assert set(to(quiet.publish(message(1), 1.0))) == set(quiet.mesh(TOPIC))


def test_publishing_without_subscribing_uses_a_fan_out_that_ends() -> None:
    made: GossipCore[int] = GossipCore(0, GossipParams(flood_publish=False), Random(1), named)
    for peer in range(1, 21):
        arrive(made, peer)
    first = set(to(made.publish(message(1), 0.0)))
    assert len(first) == made.params.d
    assert set(to(made.publish(message(2), 30.0))) == first
    for beat in range(31, 100):
        made.heartbeat(float(beat))
    assert made.held()["topics"] == 1  # the peers' subscription only
    again = set(to(made.publish(message(3), 101.0)))
    assert len(again) == made.params.d


def test_what_was_missed_is_asked_for_and_given() -> None:
    made = core(peers=1)
    asked = to(made.receive_rpc(1, Rpc(ihave=((TOPIC, (named(message(1)), named(message(2)))),)), 0.0))
    assert set(asked[1][0].iwant) == {named(message(1)), named(message(2))}
    judge(made, 1, message(1), Verdict.ACCEPT)
    assert not to(made.receive_rpc(1, Rpc(ihave=((TOPIC, (named(message(1)),)),)), 0.5))
    given = to(made.receive_rpc(1, Rpc(iwant=(named(message(1)),)), 0.5))
    assert given[1][0].publish == (message(1),)
    for beat in range(made.params.history + 1):
        made.heartbeat(1.0 + beat)
    assert not to(made.receive_rpc(1, Rpc(iwant=(named(message(1)),)), 9.0)), "too old"


def test_recent_messages_are_announced_outside_the_mesh() -> None:
    made = core(peers=30)
    made.heartbeat(0.0)
    judge(made, made.mesh(TOPIC)[0], message(1), Verdict.ACCEPT)
    announced = {p: r for p, r in to(made.heartbeat(1.0)).items() if any(rpc.ihave for rpc in r)}
    assert len(announced) >= made.params.d_lazy
    assert not set(announced) & set(made.mesh(TOPIC))


def test_what_is_announced_over_many_topics_stays_within_one_bound() -> None:
    """Each topic alone is within it, all together they would exceed what a peer takes in one RPC."""
    params = GossipParams(max_ihave_ids=50, d_lazy=30, max_cached=1000)
    made: GossipCore[int] = GossipCore(0, params, Random(1), named)
    names = [f"topic {number}" for number in range(10)]
    for name in names:
        made.subscribe(name, 0.0)
    for peer in range(1, 20):
        made.peer_up(peer, 0.0)
        made.receive_rpc(peer, Rpc(subscriptions=tuple((name, True) for name in names)), 0.0)
    made.heartbeat(0.0)
    for number in range(200):
        judge(made, 1, message(number, topic=names[number % 10]), Verdict.ACCEPT)
    announced: dict[int, set[bytes]] = {peer: set() for peer in range(1, 20)}
    for beat in range(1, 3):
        for peer, rpcs in to(made.heartbeat(float(beat))).items():
            told = [id_ for rpc in rpcs for _, ids in rpc.ihave for id_ in ids]
            assert len(told) <= params.max_ihave_ids
            assert not announced[peer].intersection(told)
            announced[peer].update(told)
    assert any(len(told) == 2 * params.max_ihave_ids for told in announced.values()), "the rest comes next time"


def test_large_messages_are_declined_by_whoever_has_them() -> None:
    made = core(peers=6)
    made.heartbeat(0.0)
    source, *others = made.mesh(TOPIC)
    big = message(1, 5000)
    declined = to(made.receive_rpc(source, Rpc(publish=(big,)), 0.0))
    assert set(declined) == set(others) and all(rpc[0].idontwant == (named(big),) for rpc in declined.values())
    made.receive_rpc(others[0], Rpc(idontwant=(named(big),)), 0.0)
    made.validated(named(big), Verdict.ACCEPT, 0.0)
    sent = to(made.forward(made.params.forward_delay))
    assert set(sent) == set(others[1:])
    old: GossipCore[int] = core(peers=0)
    old.peer_up(1, 0.0, idontwant=False)
    old.receive_rpc(1, Rpc(subscriptions=((TOPIC, True),)), 0.0)
    arrive(old, 2)
    old.heartbeat(0.0)
    assert 1 not in to(old.receive_rpc(2, Rpc(publish=(big,)), 0.0)), "a v1.1 peer is not sent what it cannot read"


def test_poor_meshes_graft_better_peers_now_and_then() -> None:
    params = GossipParams(opportunistic_ticks=2, score=ScoreParams(opportunistic_threshold=1.0))
    made = core(params, peers=12)
    made.heartbeat(0.0)
    before = set(made.mesh(TOPIC))
    outside = [peer for peer in range(1, 13) if peer not in before]
    for peer in outside:
        made.set_application_score(peer, 50.0, 0.5)
    for beat in range(1, 5):
        made.heartbeat(float(beat))
    assert set(made.mesh(TOPIC)) - before
    assert len(set(made.mesh(TOPIC)) - before) >= params.opportunistic_peers


def scored(topic: TopicScoreParams | None = None, **changes: object) -> GossipParams:
    flat = TopicScoreParams(time_in_mesh_weight=0, first_deliveries_weight=0, invalid_weight=0)
    return GossipParams(score=ScoreParams(topic=topic or flat, **changes))  # type: ignore[arg-type]


def only(**weights: float) -> TopicScoreParams:
    base = {"time_in_mesh_weight": 0.0, "first_deliveries_weight": 0.0, "invalid_weight": 0.0}
    return TopicScoreParams(**{**base, **weights})  # type: ignore[arg-type]


def test_p1_time_in_the_mesh_counts_up_to_its_cap() -> None:
    made = core(scored(only(time_in_mesh_weight=0.1, time_in_mesh_cap=50.0)), peers=1)
    made.receive_rpc(1, Rpc(graft=(TOPIC,)), 0.0)
    made.heartbeat(10.0)
    assert made.score(1) == pytest.approx(1.0)
    made.heartbeat(1000.0)
    assert made.score(1) == pytest.approx(5.0)


def test_p2_first_deliveries_count_decay_and_are_capped() -> None:
    topic = only(first_deliveries_weight=2.0, first_deliveries_cap=3.0, first_deliveries_decay=0.5)
    made = core(scored(topic), peers=2)
    for number in range(5):
        judge(made, 1, message(number), Verdict.ACCEPT)
        judge(made, 2, message(number), Verdict.ACCEPT)  # copies are no first deliveries
    made.heartbeat(1.0)
    assert (made.score(1), made.score(2)) == (pytest.approx(3.0), 0.0)


def test_p3_a_silent_mesh_member_loses_by_the_square_of_its_deficit_and_keeps_that_when_pruned() -> None:
    topic = only(mesh_deliveries_weight=-1.0, mesh_failure_weight=-1.0, mesh_deliveries_activation=5.0)
    made = core(scored(topic), peers=1)
    made.receive_rpc(1, Rpc(graft=(TOPIC,)), 0.0)
    made.heartbeat(4.0)
    assert made.score(1) == 0
    made.heartbeat(6.0)
    assert made.score(1) == pytest.approx(-25.0)
    made.heartbeat(7.0)
    assert 1 not in made.mesh(TOPIC)
    made.heartbeat(8.0)
    assert -25.0 <= made.score(1) < -20.0


def test_p4_invalid_messages_cost_by_the_square() -> None:
    made = core(scored(only(invalid_weight=-1.0)), peers=1)
    for number in range(3):
        judge(made, 1, message(number), Verdict.REJECT)
    assert made.score(1) == pytest.approx(-9.0)


def test_p5_is_what_the_application_thinks() -> None:
    made = core(scored(application_weight=2.0), peers=1)
    made.set_application_score(1, 4.0, 0.0)
    assert made.score(1) == 8.0


def test_p6_many_of_one_subnet_cost_by_the_square_of_the_surplus() -> None:
    made = core(scored(colocation_weight=-1.0, colocation_threshold=2))
    for peer in range(1, 6):
        arrive(made, peer, group="10.1" if peer < 5 else "10.2")
    made.heartbeat(1.0)
    assert [made.score(peer) for peer in range(1, 6)] == [-4.0] * 4 + [0.0]
    made.peer_down(1, 2.0)
    made.heartbeat(2.0)
    assert made.score(2) == -1.0


def test_p7_misbehaviour_counts_beyond_its_threshold_and_is_forgiven() -> None:
    made = core(scored(behaviour_weight=-1.0, behaviour_threshold=1.0), peers=1)
    for _ in range(2):
        made.broke_protocol(1, "nonsense", 0.0)
    assert made.score(1) == pytest.approx(-9.0)
    for beat in range(200):
        made.heartbeat(float(beat))
    assert made.score(1) == 0.0


def test_members_with_negative_scores_leave_the_mesh() -> None:
    made = core(peers=6)
    made.heartbeat(0.0)
    bad = made.mesh(TOPIC)[0]
    made.set_application_score(bad, -1.0, 0.5)
    pruned = to(made.heartbeat(1.0))
    assert bad not in made.mesh(TOPIC)
    assert any(rpc.prune for rpc in pruned[bad])


@pytest.mark.parametrize("nodes", [2, 10, 80])
def test_a_net_delivers_everything_once_to_everybody(nodes: int) -> None:
    net = honest_net(nodes, min(6, nodes - 1))
    net.run(5)
    sent = [message(number) for number in range(20)]
    for number, found in enumerate(sent):
        net.publish(number % nodes, found)
        net.run(0.2)
    net.run(3)
    assert all(net.reached(found, range(nodes)) == 1.0 for found in sent)
    assert net.penalised == []
    copies = sum(core.counters.duplicates for core in net.cores.values())
    assert copies / (20 * nodes) < 7


def test_messages_lost_on_the_way_come_by_lazy_gossip() -> None:
    net = honest_net(40, seed=9)
    net.run(5)
    lossy = net.random

    def lose(_peer: int, rpc: Rpc) -> Rpc | None:
        return None if rpc.publish and lossy.random() < 0.4 else rpc

    for node in range(40):
        net.filters[node] = lose
    sent = [message(number) for number in range(10)]
    for found in sent:
        net.publish(net.random.randrange(40), found)
        net.run(1.0)
    net.run(10)
    assert sum(net.reached(found, range(40)) for found in sent) / 10 >= 0.99
