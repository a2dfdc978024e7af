"""Scenarios: what is simulated, and what must hold for the run to count as passed."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal

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
    far_clocks: Share = 0.0  #: of the nodes, those whose clock is off by ``far_skew`` instead, ahead or behind
    far_skew: float = 0.0  #: seconds
    record_max_age: Annotated[float, Meta(ge=0)] = 0.0  #: seconds for which a record is valid; 0: for ever
    graph: str = ""  #: CSV of links (columns a, b) to start from, instead of random ones
    degree: Count = 12  #: links per node to start with


class Workload(_Table, frozen=True):
    """What honest nodes do, spread evenly over the time after ``warm_up``."""

    warm_up: float = 10.0  #: seconds
    lookups: Count = 0  #: find_peer for a random live node
    stores: Count = 0  #: put of a signed record
    reads: Count = 0  #: get of a record stored before; of an attacked key every other one
    stale_stores: Count = 0  #: put of a record that is past its age; nobody should take it
    far_stores: Count = 0  #: put by a node whose clock is far ahead; read again by nodes whose clock is right
    dials: Count = 0  #: one random node wants a connection to another
    messages: Count = 0  #: published on the topic
    queries: Count = 0  #: questions asked of random gateways; full fidelity only
    message_bytes: Count = 300
    cool_down: float = 10.0  #: seconds at the end in which nothing new starts
    settle: float = 0.0  #: seconds after a heal in which nobody looks for nodes of the other side, or publishes


class Peers(_Table, frozen=True):
    """Who the peers of a full-fidelity run are."""

    gateways: Count = 1  #: of the nodes; the others are workers
    late_gateways: Count = 0  #: of the gateways, how many join when half of the time is over
    max_connections: Annotated[int, Meta(ge=8)] = 128  #: of each peer; this is the setting's default


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
    """What must hold at the end; a run that breaks one fails. None means: not asked for.

    ``_judge.py`` says which metric each one bounds.
    """

    lookup_success: Share | None = None
    read_success: Share | None = None  #: of records that nobody attacks
    delivery: Share | None = None
    mean_hops_within_log2: bool = False  #: mean hops of a lookup at most log2(nodes)
    lookup_p99_seconds: float | None = None
    delivery_p99_seconds: float | None = None
    table_live_share: Share | None = None  #: of routing table entries at the end that point at live nodes
    honest_disconnected: Count | None = None  #: honest nodes whose table holds no live honest node, at most
    attacked_read_success: Share | None = None  #: of reads of the key that Sybils crowd around
    region_messages: float | None = None  #: sent by one operation that covers a region, at most
    forgotten: Share | None = None  #: of the nodes, those that know nobody of the other side when a partition heals
    merged_seconds: float | None = None  #: from the heal until everybody knows somebody of the other side
    across_lookup_success: Share | None = None  #: of lookups for nodes of the other side, once that has settled
    punch_success: Share | None = None  #: of hole punches tried
    cone_pairs_reachable: Share | None = None  #: of all pairs of nodes behind cone NATs
    future_refused: Share | None = None  #: of reads of records from clocks far ahead, by nodes whose clock is right
    stale_refused: Share | None = None  #: of stores of records past their age
    # Full fidelity only:
    answered: Share | None = None  #: of questions
    directory: Share | None = None  #: of the workers online that gateways know, after the first third of the run
    gateway_usable_seconds: float | None = None  #: until each gateway that joins late knows a worker to send work to
    idle_mb_per_day: float | None = None  #: of a worker, in and out, without its tasks


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


_IN_FULL: Final = ("answered", "directory", "gateway_usable_seconds", "idle_mb_per_day")


def _impossible(scenario: Scenario) -> str:
    """What is wrong although every field is valid by itself; empty when nothing is."""
    asked = {name for name in Invariants.__struct_fields__ if getattr(scenario.invariants, name) not in (None, False)}
    wrong = asked - set(_IN_FULL) if scenario.fidelity == "full" else asked & set(_IN_FULL)
    if wrong:
        return f'fidelity = "{scenario.fidelity}" does not measure {", ".join(sorted(wrong))}: leave it out'
    adversary = scenario.adversary
    if adversary.kind != "none":
        if adversary.count > scenario.nodes - 2:
            return (
                f"{adversary.count} of {scenario.nodes} nodes would be attackers, and two honest ones are the least: "
                "ask for more nodes, or lower adversary.count"
            )
        if adversary.near > adversary.count:
            return f"adversary.near is {adversary.near}, of {adversary.count} attackers: lower it, or raise the count"
    if scenario.workload.stale_stores and not scenario.population.record_max_age:
        return "records must age to be stale: set population.record_max_age, or leave workload.stale_stores"
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
