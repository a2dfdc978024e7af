"""Who is there at the start: identities, addresses, NAT classes, filled tables, links."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from owm.dht._core_types import KEY_BITS, Contact, key_of
from simulations._node import Node
from simulations._scenario import Scenario

__all__ = ["attacked_key", "converge", "graph_links", "make_nodes"]

_PREFIX: Final = bytes.fromhex("002408011220")  # of an Ed25519 peer id
_GRIND: Final = 400  # identities tried for each of those ground to be near a key


def attacked_key(scenario: Scenario) -> bytes:
    """The record key that a Sybil attack aims at."""
    return f"/owm/manifest/{scenario.name}".encode()


def _identity(random: Random) -> bytes:
    return _PREFIX + random.randbytes(32)


def make_nodes(scenario: Scenario, random: Random) -> list[Node]:
    """Honest nodes first, then the attacker's."""
    population, adversary = scenario.population, scenario.adversary
    hostile = adversary.count if adversary.kind != "none" else 0
    honest = scenario.nodes - hostile
    classes = sorted(population.nat)
    nodes = []
    for index in range(honest):
        draw, nat = random.random(), "public"
        for name in classes:
            draw -= population.nat[name]
            if draw < 0:
                nat = name
                break
        skew = random.uniform(-population.clock_skew, population.clock_skew)
        far = bool(population.far_clocks) and random.random() < population.far_clocks
        if far:
            skew = random.choice((-population.far_skew, population.far_skew))
        contact = Contact(_identity(random), (_address(random, index, None),))
        node = Node(index, contact, nat if index else "public", skew)
        node.far = far
        nodes.append(node)
    near = _ground(scenario, random) if adversary.near else []
    for index in range(honest, honest + hostile):
        identity = near.pop() if near else _identity(random)
        node = Node(index, Contact(identity, (_address(random, index, adversary.subnets or None),)), "public", 0.0)
        node.hostile = True
        nodes.append(node)
    return nodes


def _address(random: Random, index: int, subnets: int | None) -> str:
    """Honest nodes and spread-out attackers each have their own /16 as far as there are enough."""
    if subnets:
        return f"/ip4/200.{index % subnets}.{random.randrange(256)}.{random.randrange(1, 255)}/tcp/9000"
    return f"/ip4/{1 + index // 256 % 190}.{index % 256}.{random.randrange(256)}.{random.randrange(1, 255)}/tcp/9000"


def _ground(scenario: Scenario, random: Random) -> list[bytes]:
    """Identities nearer to the attacked key than any honest node: what grinding buys an attacker."""
    target = key_of(attacked_key(scenario))
    wanted = scenario.adversary.near
    tried = [_identity(random) for _ in range(wanted * _GRIND)]
    tried.sort(key=lambda identity: key_of(identity) ^ target)
    return tried[:wanted]


def converge(nodes: list[Node], random: Random, k: int) -> None:
    """Fill every table as a network that is long up has filled it: up to ``k`` random servers in each bucket.

    Only those that are online enter and are entered.

    The buckets next to a node, which hold few, are filled whole; so lookups meet what they would meet in truth.
    """
    servers = sorted((node for node in nodes if node.nat == "public" and node.online), key=lambda n: n.contact.key)
    keys = [node.contact.key for node in servers]
    for node in nodes:
        if node.dht is None:
            continue
        own = node.contact.key
        low, high = 0, len(keys)
        for bit in range(KEY_BITS):
            if high - low <= 1:
                break
            shift = KEY_BITS - 1 - bit
            middle = bisect_left(keys, (own >> shift | 1) << shift, low, high)
            if own >> shift & 1:
                other_low, other_high, low = low, middle, middle
            else:
                other_low, other_high, high = middle, high, middle
            count = other_high - other_low
            chosen = range(other_low, other_high) if count <= k else random.sample(range(other_low, other_high), k)
            for index in chosen:
                node.dht.table.heard(servers[index].contact, 0.0)


def graph_links(scenario: Scenario, count: int, random: Random) -> Iterator[tuple[int, int]]:
    """The links to start with: from the scenario's CSV, or random ones of the wanted degree."""
    if scenario.population.graph:
        with Path(scenario.population.graph).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield int(row["a"]), int(row["b"])
        return
    for node in range(count):
        for _ in range((scenario.population.degree + 1) // 2):
            other = random.randrange(count - 1)
            yield node, other + (other >= node)
