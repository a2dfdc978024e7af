"""Forged copies of true messages: they neither keep the true one out nor get an honest forwarder blamed."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest

from owm.gossip._core import GossipCore, Verdict, libp2p_message_id
from owm.gossip._core_params import GossipParams, SignaturePolicy
from owm.gossip._core_state import Deliver, Effect, Validate
from owm.gossip._core_wire import Message, Rpc
from owm.gossip._identifiers import is_signed_by_its_author, record_message_id, sign_message
from owm.identity import Identity
from tests.attacks.test_gossip_attacks import core
from tests.gossip._net import TOPIC, message, named

EVIL, HONEST, OTHER = 1000, 2, 3
AUTHOR = Identity(bytes([7]) * 32)
TRUE = sign_message(AUTHOR, TOPIC, b"what the author said", (41).to_bytes(8, "big"))


def strict() -> GossipCore[int]:
    """A core under strict signing, as in a net with other implementations."""
    params = GossipParams(policy=SignaturePolicy.STRICT_SIGN)
    made: GossipCore[int] = GossipCore(0, params, Random(1), libp2p_message_id)
    made.subscribe(TOPIC, 0.0)
    for peer in (EVIL, HONEST, OTHER):
        made.peer_up(peer, 0.0)
        made.receive_rpc(peer, Rpc(subscriptions=((TOPIC, True),)), 0.0)
    return made


def like_true(**changes: object) -> Message:
    """The true message with other fields."""
    fields = {name: getattr(TRUE, name) for name in ("topic", "data", "sender", "seqno", "signature", "key")}
    return Message(**{**fields, **changes})  # type: ignore[arg-type]


FORGERIES = {
    "a wrong key": {"key": b"\x08\x01\x12\x20" + bytes(32)},
    "an empty key": {"key": b""},
    "the next number": {"seqno": (42).to_bytes(8, "big")},
    "another author": {"sender": bytes(Identity(bytes([8]) * 32).peer_id)},
    "the author cut elsewhere": {"sender": TRUE.sender[:-1], "seqno": TRUE.sender[-1:] + TRUE.seqno},  # type: ignore[index,operator]
}


def judge(made: GossipCore[int], effects: list[Effect[int]], now: float) -> list[Message]:
    """Validate as :class:`owm.gossip.PubSub` does, until nothing is left to judge; what was delivered."""
    delivered = []
    while effects:
        effect = effects.pop(0)
        if isinstance(effect, Validate):
            verdict = Verdict.ACCEPT if is_signed_by_its_author(effect.message) else Verdict.REJECT
            effects += made.validated(effect.message.id, verdict, now)
        elif isinstance(effect, Deliver):
            delivered.append(effect.message)
    return delivered


@pytest.mark.attack("G10")
@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_that_was_refused_does_not_stand_for_the_true_message(changes: dict[str, object]) -> None:
    made = strict()
    assert judge(made, made.receive_rpc(EVIL, Rpc(publish=(like_true(**changes),)), 0.0), 0.0) == []
    assert judge(made, made.receive_rpc(HONEST, Rpc(publish=(like_true(),)), 0.1), 0.1) == [TRUE]
    assert made.score(EVIL) < 0 <= made.score(HONEST)


@pytest.mark.attack("G10")
@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_under_validation_does_not_swallow_the_true_message(changes: dict[str, object]) -> None:
    made = strict()
    effects = made.receive_rpc(EVIL, Rpc(publish=(like_true(**changes),)), 0.0)
    effects += made.receive_rpc(HONEST, Rpc(publish=(like_true(),)), 0.1)
    assert judge(made, effects, 0.2) == [TRUE]
    assert made.score(EVIL) < 0 <= made.score(HONEST)


@pytest.mark.attack("G10")
def test_many_forgeries_of_one_peer_do_not_take_every_place() -> None:
    made = strict()
    effects = []
    for number in range(50):
        effects += made.receive_rpc(EVIL, Rpc(publish=(like_true(data=b"forgery %d" % number),)), 0.0)
    effects += made.receive_rpc(HONEST, Rpc(publish=(like_true(),)), 0.1)
    assert judge(made, effects, 0.2) == [TRUE]
    assert made.score(HONEST) >= 0
    assert made.held()["pending"] == 0


@pytest.mark.attack("G10")
def test_forged_bytes_under_the_id_of_a_message_do_not_keep_it_out() -> None:
    made = core(None, EVIL, 2)
    true = message(1)
    forged = Message(TOPIC, true.data[:16] + b"forged" + true.data[22:])
    assert [type(e) for e in made.receive_rpc(EVIL, Rpc(publish=(forged,)), 0.0)] == [Validate]
    made.receive_rpc(2, Rpc(publish=(true,)), 0.1)  # comes while the forgery is judged
    effects = made.validated(named(true), Verdict.REJECT, 0.2)
    again = [effect for effect in effects if isinstance(effect, Validate)]
    assert [effect.message for effect in again] == [true]
    effects = made.validated(named(true), Verdict.ACCEPT, 0.3)
    assert [effect.message for effect in effects if isinstance(effect, Deliver)] == [true]
    assert made.score(EVIL) < 0 <= made.score(2)
    later = made.receive_rpc(EVIL, Rpc(publish=(forged,)), 0.4)
    assert not any(isinstance(effect, Validate) for effect in later)


@pytest.mark.attack("G9")
@pytest.mark.parametrize("size", [0, 7, 9, 60_000])
def test_an_author_cannot_choose_how_long_the_id_is_that_all_announce(size: int) -> None:
    made = strict()
    signed = sign_message(AUTHOR, TOPIC, b"well signed", bytes(size))
    assert judge(made, made.receive_rpc(EVIL, Rpc(publish=(signed,)), 0.0), 0.0) == []
    assert made.score(EVIL) < 0
    assert made.held()["seen"] == made.held()["cached"] == 0


@pytest.mark.attack("G10")
def test_the_id_is_the_hash_of_what_is_signed() -> None:
    from owm.records import CapabilityManifest, sign_record

    network = "0123456789abcdef0123456789abcdef"
    name = record_message_id(network)
    one, other = Identity(bytes(32)), Identity(bytes([1]) * 32)

    def manifest(sequence: int) -> CapabilityManifest:
        return CapabilityManifest(sequence=sequence, roles=("worker",), tier="t0", addresses=(), nonce=b"n" * 16)

    def id_of(envelope: bytes) -> bytes:
        return name(Message(TOPIC, envelope))

    first = sign_record(one, manifest(1), network).envelope
    assert id_of(first) != id_of(sign_record(one, manifest(2), network).envelope)
    assert id_of(first) != id_of(sign_record(other, manifest(1), network).envelope)
    assert record_message_id("f" * 32)(Message(TOPIC, first)) != id_of(first)
    malleable = bytearray(first)
    malleable[-1] ^= 1  # another signature of the same content is the same message, and no second one
    assert id_of(bytes(malleable)) == id_of(first)
    for flipped in range(len(first) - 66):
        other_bytes = bytearray(first)
        other_bytes[flipped] ^= 1
        with suppress(ValueError):  # some flips leave no record at all
            assert id_of(bytes(other_bytes)) != id_of(first)
    with pytest.raises(ValueError, match="not a signed record"):
        id_of(b"short")


@pytest.mark.attack("G10")
def test_unsigned_messages_are_refused_where_signatures_are_the_rule() -> None:
    made = core(GossipParams(policy=SignaturePolicy.STRICT_SIGN), EVIL)
    effects = made.receive_rpc(EVIL, Rpc(publish=(message(1),)), 0.0)
    assert not any(isinstance(effect, Validate) for effect in effects)
    assert made.score(EVIL) < 0
