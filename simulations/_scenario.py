"""Scenarios: what is simulated, and what must hold for the run to count as passed."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from owm.errors import ConfigError
from simulations._churn import ChurnModel
from simulations._links import LinkModel

__all__ = ["Scenario", "load_scenario", "shipped_scenarios"]

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Population(_Table, frozen=True):
    """Who takes part at the start."""

    converged: bool = True  #: start with filled routing tables and meshes; False: every node joins through the first
    join_interval: float = 0.02  #: seconds between joins, when not converged
    nat: dict[str, Share] = {}  #: share per class: "public", "cone", "symmetric"; the rest is public
    hole_punch: Share = 0.7  #: probability that two nodes behind cone NATs reach each other
    clock_skew: float = 0.0  #: seconds; each node's clock is off by a uniform draw of up to this much
    graph: str = ""  #: CSV of links (columns a, b) to start from, instead of random ones
    degree: Count = 12  #: links per node to start with


class Workload(_Table, frozen=True):
    """What honest nodes do, spread evenly over the time after ``warm_up``."""

    warm_up: float = 10.0  #: seconds
    lookups: Count = 0  #: find_peer for a random live node
    stores: Count = 0  #: put of a signed record
    reads: Count = 0  #: get of a record stored before
    messages: Count = 0  #: published on the topic
    queries: Count = 0  #: questions asked of random gateways; full fidelity only
    message_bytes: Count = 300
    cool_down: float = 10.0  #: seconds at the end in which nothing new starts


class Peers(_Table, frozen=True):
    """Who the peers of a full-fidelity run are."""

    gateways: Count = 1  #: of the nodes; the others are workers
    late_gateways: Count = 0  #: of the gateways, how many join when half of the time is over
    max_connections: Annotated[int, Meta(ge=8)] = 40  #: of each peer


class Event(_Table, frozen=True):
    """Something that happens to the network at a given time."""

    at: float  #: seconds
    kind: Literal["partition", "heal", "stop", "freeze", "restart"]
    share: Share = 0.5  #: of the nodes that it strikes
    first: bool = False  #: strike the first (bootstrap) node instead
    one_way: bool = False


class Adversary(_Table, frozen=True):
    """Who attacks, and how; behaviours are in ``_adversaries.py``."""

    kind: Literal["none", "sybil", "eclipse", "flood"] = "none"
    count: Count = 0
    near: Count = 0  #: of a sybil attack: identities ground to be the nearest to the attacked key
    subnets: Count = 0  #: how many /16 groups the attackers have; 0: each its own
    rate: float = 0.0  #: messages per second and attacker, of a flood


class Invariants(_Table, frozen=True):
    """What must hold at the end; a run that breaks one fails. None means: not asked for."""

    lookup_success: Share | None = None
    read_success: Share | None = None
    delivery: Share | None = None
    mean_hops_within_log2: bool = False  #: mean hops of a lookup at most log2(nodes)
    lookup_p99_seconds: float | None = None
    delivery_p99_seconds: float | None = None
    table_live_share: Share | None = None  #: of routing table entries at the end that point at live nodes
    answered: Share | None = None  #: of questions; full fidelity only, like the ones below
    directory: Share | None = None  #: of the workers online that gateways know, after the first third of the run
    gateway_usable_seconds: float | None = None  #: until a gateway that joins late can dispatch
    idle_mb_per_day: float | None = None  #: of a worker, in and out, without its tasks
    honest_disconnected: Count | None = None  #: honest nodes whose table holds no live honest node, at most


class Scenario(_Table, frozen=True):
    """A whole scenario file."""

    name: str
    title: str = ""
    nodes: Annotated[int, Meta(ge=2, le=1_000_000)] = 500
    duration: Annotated[float, Meta(gt=0)] = 300.0  #: simulated seconds
    dht: bool = True
    gossip: bool = True
    signatures: Literal["stand-in", "real"] = "stand-in"
    fidelity: Literal["protocol", "full"] = "protocol"  #: the cores on an event heap, or whole peers in virtual time
    peers: Peers = msgspec.field(default_factory=Peers)
    population: Population = msgspec.field(default_factory=Population)
    workload: Workload = msgspec.field(default_factory=Workload)
    links: LinkModel = msgspec.field(default_factory=LinkModel)
    churn: ChurnModel = msgspec.field(default_factory=ChurnModel)
    adversary: Adversary = msgspec.field(default_factory=Adversary)
    events: tuple[Event, ...] = ()
    invariants: Invariants = msgspec.field(default_factory=Invariants)


def shipped_scenarios() -> list[str]:
    """The names of the scenarios that come with the package."""
    folder = resources.files("simulations") / "scenarios"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_scenario(name: str, *, nodes: int | None = None, duration: float | None = None) -> Scenario:
    """A shipped scenario by name, or a file by path.

    Args:
        nodes, duration: override what the file says.

    Raises:
        ConfigError: there is none, or it is not valid; the message names the field.
    """
    shipped = resources.files("simulations") / "scenarios" / f"{name}.toml"
    try:
        text = (
            shipped.read_text(encoding="utf-8")
            if "/" not in name and shipped.is_file()
            else Path(name).expanduser().read_text(encoding="utf-8")
        )
    except OSError as error:
        raise ConfigError(
            f"there is no scenario {name!r}: name a file, or one of {', '.join(shipped_scenarios())}"
        ) from error
    try:
        scenario = msgspec.convert(tomllib.loads(text), Scenario)
        changes = {k: v for k, v in (("nodes", nodes), ("duration", duration)) if v is not None}
        scenario = msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(scenario, **changes)), Scenario)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"the scenario {name!r} is not valid: {error}") from error
    if reason := _impossible(scenario):
        raise ConfigError(f"the scenario {name!r} cannot be run: {reason}")
    return scenario


def _impossible(scenario: Scenario) -> str:
    """What is wrong although every field is valid by itself; empty when nothing is."""
    adversary = scenario.adversary
    if adversary.kind != "none":
        if adversary.count > scenario.nodes - 2:
            return (
                f"{adversary.count} of {scenario.nodes} nodes would be attackers, and two honest ones are the least: "
                "ask for more nodes, or lower adversary.count"
            )
        if adversary.near > adversary.count:
            return f"adversary.near is {adversary.near}, of {adversary.count} attackers: lower it, or raise the count"
    if sum(scenario.population.nat.values()) > 1 + 1e-9:
        return "the shares in population.nat add up to more than 1"
    if scenario.fidelity == "full":
        return _impossible_in_full(scenario)
    if not (scenario.dht or scenario.gossip):
        return "neither dht nor gossip takes part: set one of them to true"
    return ""


def _impossible_in_full(scenario: Scenario) -> str:
    if not 0 < scenario.peers.gateways < scenario.nodes or scenario.peers.late_gateways >= scenario.peers.gateways:
        return "full fidelity needs a gateway from the start, and a worker: change peers.gateways or late_gateways"
    if scenario.adversary.kind != "none" or scenario.events:
        return 'adversaries and events are for fidelity = "protocol"'
    if scenario.signatures != "real":
        return 'at full fidelity signatures are real: set signatures = "real"'
    return ""
