"""The settings of a peer, as in ``owm.toml`` (SRS 4.1.4); every field states its meaning and unit.

The same structs validate the file, so a misspelt key or a wrong type is an error that names it.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

__all__ = [
    "ROLES",
    "ApiSettings",
    "DataSettings",
    "HealthSettings",
    "LightningSettings",
    "LimitsSettings",
    "LogSettings",
    "ModelSettings",
    "NetworkSettings",
    "NodeSettings",
    "Settings",
    "TaskSettings",
]

ROLES = ("worker", "gateway")

Port = Annotated[int, Meta(ge=0, le=65535)]
Percent = Annotated[int, Meta(ge=1, le=100)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
SecondsOrNone = Annotated[float, Meta(ge=0)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class NodeSettings(_Section, frozen=True):
    """Who this peer is."""

    alias: Annotated[str, Meta(max_length=64)] = ""  #: a name for people; never an identifier
    tier_override: Literal["", "t0", "t1", "t2", "t3"] = ""  #: may only lower the detected tier
    data_dir: str = "~/.owm"  #: identity, task log, blobs
    roles: tuple[str, ...] = ()  #: what this peer does for others: "worker", "gateway"
    stop_timeout: SecondsOrNone = 0.0  #: for what runs when told to stop, seconds; 0 for as long as it may take


class NetworkSettings(_Section, frozen=True):
    """Which network, where to listen, whom to ask first."""

    profile: str = "devnet"  #: a shipped network ("devnet", "mainnet") or the path of a network.toml
    listen_host: str = "0.0.0.0"  # noqa: S104 - address to listen on, or several with commas: "0.0.0.0, ::" for all
    listen_port: Port = 9000  #: 0 lets the system choose
    announce: tuple[str, ...] = ()  #: multiaddrs to advertise instead of what is listened on
    bootstrap: tuple[str, ...] = ()  #: multiaddrs, with or without /p2p/<peer id>, of peers to join through
    coordinator_url: str = ""  #: the Phase 1 coordinator, tried last; empty for none
    max_concurrent_tasks: Positive = 4  #: tasks that run at once
    mdns: bool = False  #: look for peers on the local network
    measure_bandwidth: bool = True  #: with a few peers at the start, then one a day (8 MiB each)

    @property
    def listen_hosts(self) -> tuple[str, ...]:
        """The addresses of ``listen_host``, one by one."""
        return tuple(host for part in self.listen_host.split(",") if (host := part.strip().strip("[]")))

    @property
    def listen_addresses(self) -> tuple[str, ...]:
        """Where to listen, as multiaddrs."""
        return tuple(f"/{_kind_of(host)}/{host}/tcp/{self.listen_port}" for host in self.listen_hosts)


def _kind_of(host: str) -> str:
    try:
        return f"ip{ip_address(host).version}"
    except ValueError:
        return "dns"  # a name of this machine, such as localhost


class LimitsSettings(_Section, frozen=True):
    """Bounds on what this peer spends on others."""

    max_connections: Positive = 128  #: in all
    max_inbound: Positive = 96  #: connections that others opened
    max_connections_per_subnet: Positive = 8  #: of one /16 or /32 group of addresses
    max_streams_per_peer: Positive = 64  #: open at once
    max_bytes_per_day: Annotated[int, Meta(ge=0)] = 0  #: both ways together; 0 for no limit


class LightningSettings(_Section, frozen=True):
    """The operator's Lightning node. Nothing here is read before payments are switched on."""

    lnd_rpc_host: str = "localhost:10009"  #: host and port of the node's API
    lnd_macaroon_path: str = "~/.lnd/data/chain/bitcoin/mainnet/admin.macaroon"  #: the credential
    lnd_tls_cert_path: str = "~/.lnd/tls.cert"  #: the node's certificate
    min_payment_channel_sat: Annotated[int, Meta(ge=0)] = 100_000  #: channels smaller than this are not used, satoshis


class ModelSettings(_Section, frozen=True):
    """What a worker serves."""

    model_cache_dir: str = "~/.owm/models"  #: model files, shared by all peers of this machine
    max_vram_percent: Percent = 80  #: of each NVIDIA card's memory, for the engine; needs CUDA MPS
    engine: Literal["llama.cpp", "openai"] = "llama.cpp"  #: what runs the models; "openai" is a server at url
    url: str = ""  #: for engine "openai": the server's base URL, such as http://127.0.0.1:8000/v1
    api_key_env: str = ""  #: for engine "openai": the environment variable that holds its key
    chat: str = "smollm2-135m-instruct"  #: id of the chat model to serve
    embedding: str = "all-minilm-l6-v2"  #: id of the embedding model; empty for none
    slots: Positive = 4  #: generations that run at once
    context: Annotated[int, Meta(ge=128)] = 2048  #: tokens per slot, prompt and answer together
    threads: Positive = 1  #: of the engine process
    memory_limit_mib: Annotated[int, Meta(ge=256)] = 4096  #: address space of the engine process
    task_timeout: Seconds = 120.0  #: of one task, seconds


class DataSettings(_Section, frozen=True):
    """Data that the operator lends to training."""

    allow_contributor_data: bool = False  #: lend the folder below
    contributor_data_dir: str = ""  #: the folder; empty for none


class TaskSettings(_Section, frozen=True):
    """What the task log keeps of tasks, ours and others' (SRS-NODE-06)."""

    keep_days: Positive = 90  #: of finished tasks, and of dispatches: what is older can no longer be proved
    most_kept: Positive = 1_000_000  #: tasks; the oldest finished ones go first
    keep_contents: bool = False  #: prompts and answers too, not only their hashes; off, since they are other people's
    contents_days: Positive = 7  #: of prompts and answers
    contents_mib: Positive = 256  #: of all prompts and answers together; the oldest go first


class ApiSettings(_Section, frozen=True):
    """The public API of a gateway."""

    host: str = "127.0.0.1"  #: address to listen on
    port: Port = 8000  #: 0 lets the system choose
    requests_per_day: Positive = 100  #: per key, sliding window
    page_requests_per_day: Positive = 30  #: of the landing page, per address
    max_body_bytes: Positive = 1_048_576  #: of a request
    max_prompt_tokens: Positive = 1024  #: refused before any work is dispatched
    write_timeout: Seconds = 10.0  #: a client that reads nothing for so many seconds is dropped
    query_timeout: Seconds = 120.0  #: of one query, seconds, all attempts together
    max_concurrent: Positive = 1000  #: queries at once; more are refused
    allowed_hosts: tuple[str, ...] = ()  #: Host headers to accept besides the loopback names; "*" for any
    cors_origins: tuple[str, ...] = ()  #: web origins that may call the API


class HealthSettings(_Section, frozen=True):
    """Health and metrics, on the loopback only (SRS-NODE-08)."""

    port: Port = 8080  #: 0 lets the system choose


class LogSettings(_Section, frozen=True):
    """Structured logs on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"  #: the least severe that is shown
    format: Literal["auto", "json", "human"] = "auto"  #: auto: human on a terminal, JSON elsewhere


class Settings(_Section, frozen=True):
    """Everything that can be set; what is left out has these defaults."""

    node: NodeSettings = field(default_factory=NodeSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    lightning: LightningSettings = field(default_factory=LightningSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    tasks: TaskSettings = field(default_factory=TaskSettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    log: LogSettings = field(default_factory=LogSettings)
