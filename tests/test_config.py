"""Settings from four sources, and the constitution of a network."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from owm.config import (
    NetworkSettings,
    Settings,
    config_path,
    describe_settings,
    load_constitution,
    load_settings,
    render_settings,
)
from owm.errors import ConfigError

SRS_EXAMPLE = """
[node]
alias = "my-node"
tier_override = ""
data_dir = "~/.owm"
[network]
coordinator_url = "https://coordinator.owm.network"
listen_port = 9000
max_concurrent_tasks = 4
[lightning]
lnd_rpc_host = "localhost:10009"
lnd_macaroon_path = "~/.lnd/data/chain/bitcoin/mainnet/admin.macaroon"
lnd_tls_cert_path = "~/.lnd/tls.cert"
min_payment_channel_sat = 100000
[model]
model_cache_dir = "~/.owm/models"
max_vram_percent = 80
[data]
allow_contributor_data = false
contributor_data_dir = ""
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "owm.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_example_of_the_requirements_is_read(tmp_path: Path) -> None:
    """SRS 4.1.4."""
    effective = load_settings(write(tmp_path, SRS_EXAMPLE), environ={})
    assert effective.settings.node.alias == "my-node"
    assert effective.settings.network.coordinator_url == "https://coordinator.owm.network"
    assert effective.sources["lightning.min_payment_channel_sat"] == str(tmp_path / "owm.toml")


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "[api]\nport = 1\nhost = 'a'\nrequests_per_day = 7\n")
    effective = load_settings(file, {"api.port": 3}, {"OWM_API_PORT": "2", "OWM_API_HOST": "b"})
    api = effective.settings.api
    assert (api.port, api.host, api.requests_per_day, api.max_concurrent) == (3, "b", 7, 1000)
    assert [effective.sources[f"api.{key}"] for key in ("port", "host", "max_concurrent")] == [
        "flag",
        "environment",
        "default",
    ]


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load_settings(None, {"api.port": None}, {}).settings.api.port == 8000


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[api]\nprot = 1\n", "prot"),
        ("[api]\nport = 70000\n", "port"),
        ("[api]\nport = '80'\n", "port"),
        ("[nodes]\n", "nodes"),
        ("[node]\ntier_override = 't9'\n", "tier_override"),
        ("[node]\nroles = ['king']\n", "king"),
        ("alias = 'x'\n", "alias"),
        ("[api\n", "TOML"),
        ("[model]\nengine = 'stand-in'\n", "engine"),
    ],
)
def test_what_is_not_allowed_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_settings(write(tmp_path, text), environ={})


def test_a_missing_file_that_was_named_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="owm init"):
        load_settings(tmp_path / "none.toml", environ={})


def test_environment_values_take_the_setting_s_type() -> None:
    environ = {"OWM_NETWORK_MDNS": "True", "OWM_NODE_ROLES": "worker, gateway", "OWM_MODEL_TASK_TIMEOUT": "2.5"}
    settings = load_settings(None, environ=environ | {"OWM_CONFIG": "/nonexistent"}).settings
    assert settings.network.mdns is True
    assert settings.node.roles == ("worker", "gateway")
    assert settings.model.task_timeout == 2.5


def test_an_environment_value_of_the_wrong_type_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="OWM_API_PORT='x'"):
        load_settings(None, environ={"OWM_API_PORT": "x"})


def test_the_names_that_the_requirements_fix_are_read() -> None:
    """SRS 10.3."""
    environ = {"OWM_LOG_LEVEL": "DEBUG", "OWM_LND_HOST": "h:1", "OWM_DATA_DIR": "/nonexistent/d"}
    effective = load_settings(None, environ=environ)
    assert effective.settings.log.level == "DEBUG"
    assert effective.settings.lightning.lnd_rpc_host == "h:1"
    assert str(effective.data_dir) == "/nonexistent/d"
    assert str(config_path(environ)) == "/nonexistent/d/owm.toml"


def test_the_rendered_file_reads_back_as_the_defaults(tmp_path: Path) -> None:
    text = render_settings({})
    assert load_settings(write(tmp_path, text), environ={}).settings == Settings()
    uncommented = "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines())
    assert msgspec.convert(tomllib.loads(uncommented), Settings) == Settings()


def test_every_setting_has_a_comment_and_a_default() -> None:
    settings = describe_settings()
    assert len(settings) == sum(len(section) for section in msgspec.to_builtins(Settings()).values())
    assert [f"{s.section}.{s.key}" for s in settings if not s.comment or not s.section_comment] == []


def test_the_devnet_loads_and_its_id_names_it() -> None:
    devnet = load_constitution("devnet")
    assert len(devnet.id) == 32
    assert devnet.protocol("task") == f"/owm/{devnet.id}/task/1"


def test_mainnet_refuses_to_start_until_it_is_filled_in() -> None:
    with pytest.raises(ConfigError, match="placeholder"):
        load_constitution("mainnet")


def test_parameters_do_not_change_the_id_but_the_nonce_does(tmp_path: Path) -> None:
    def load(text: str) -> str:
        (tmp_path / "network.toml").write_text(text, encoding="utf-8")
        return load_constitution(str(tmp_path)).id

    one = load('name = "x"\ngenesis_nonce = "a"\n')
    assert load('name = "x"\ngenesis_nonce = "a"\nmanifest_interval = 5.0\n') == one
    assert load('name = "x"\ngenesis_nonce = "b"\n') != one


@pytest.mark.parametrize("profile", ["nowhere", "/nonexistent/network.toml"])
def test_an_unknown_network_is_an_error_that_names_it(profile: str) -> None:
    with pytest.raises(ConfigError, match="there is no network"):
        load_constitution(profile)


@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        ("0.0.0.0", ("/ip4/0.0.0.0/tcp/9000",)),
        ("0.0.0.0, ::", ("/ip4/0.0.0.0/tcp/9000", "/ip6/::/tcp/9000")),
        ("[::1]", ("/ip6/::1/tcp/9000",)),
        ("localhost", ("/dns/localhost/tcp/9000",)),
        ("", ()),
    ],
)
def test_where_to_listen_may_be_several_addresses_of_either_kind(hosts: str, addresses: tuple[str, ...]) -> None:
    assert NetworkSettings(listen_host=hosts).listen_addresses == addresses
