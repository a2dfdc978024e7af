"""owm init, config, doctor, version."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

from owm import __version__
from owm.config import load_settings
from owm.identity import Identity
from tests.cli._run import Cli


def test_init_makes_an_identity_and_settings_that_are_valid(owm: Cli, tmp_path: Path) -> None:
    """SRS-NODE-02."""
    outcome = owm("init", "--data-dir", str(tmp_path / "o"), "--roles", "worker", "--alias", "mine", "--json")
    assert outcome.code == 0
    key = tmp_path / "o" / "identity.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert outcome.json["peer_id"] == str(Identity.load(key).peer_id)
    settings = load_settings(tmp_path / "o" / "owm.toml", environ={}).settings
    assert (settings.node.roles, settings.node.alias) == (("worker",), "mine")
    assert settings.node.data_dir == str(tmp_path / "o")


def test_init_again_keeps_both(owm: Cli, tmp_path: Path) -> None:
    first = owm("init", "--data-dir", str(tmp_path), "--json").json
    (tmp_path / "owm.toml").write_text("[node]\nalias = 'edited'\n")
    second = owm("init", "--data-dir", str(tmp_path), "--json").json
    assert second["peer_id"] == first["peer_id"]
    assert (second["identity_created"], second["config_written"]) == (False, False)
    assert "edited" in (tmp_path / "owm.toml").read_text()


def test_init_never_prints_the_seed(owm: Cli, tmp_path: Path) -> None:
    outcome = owm("init", "--data-dir", str(tmp_path))
    seed = (tmp_path / "identity.key").read_bytes().hex()
    assert seed not in outcome.out + outcome.err + (tmp_path / "owm.toml").read_text()


def test_an_identity_that_others_can_read_is_exit_code_4(owm: Cli, tmp_path: Path) -> None:
    owm("init", "--data-dir", str(tmp_path))
    (tmp_path / "identity.key").chmod(0o644)
    outcome = owm("init", "--data-dir", str(tmp_path))
    assert outcome.code == 4
    assert "chmod 600" in outcome.err


def test_show_says_where_each_value_comes_from(owm: Cli, tmp_path: Path) -> None:
    file = tmp_path / "owm.toml"
    file.write_text("[api]\nport = 8123\n")
    found = owm("config", "show", "--config", str(file), "--effective", "--json").json
    assert found["api"]["port"] == {"value": 8123, "source": str(file)}
    assert found["health"]["port"] == {"value": 8080, "source": "default"}
    short = owm("config", "show", "--config", str(file)).out
    assert "port = 8123" in short and "health" not in short


def test_check_tells_good_from_bad(owm: Cli, tmp_path: Path) -> None:
    file = tmp_path / "owm.toml"
    file.write_text("[network]\nprofile = 'devnet'\n")
    assert owm("config", "check", "--config", str(file), "--json").json["network"] == "devnet"
    file.write_text("[network]\nprofile = 'mainnet'\n")
    assert owm("config", "check", "--config", str(file)).code == 3


def test_doctor_gives_a_remedy_for_everything_that_is_wrong(owm: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "owm.toml").write_text(
            f"[health]\nport = {port}\n[network]\nlisten_port = 0\nbootstrap = ['/ip4/127.0.0.1/tcp/1', 'nonsense']\n"
        )
        outcome = owm("doctor", "--data-dir", str(tmp_path), "--json")
    assert outcome.code == 1
    findings = outcome.json["findings"]
    wrong = {finding["name"]: finding for finding in findings if finding["level"] == "error"}
    assert {"identity", "health.port", "bootstrap"} <= set(wrong)
    assert all(finding["remedy"] for finding in findings if finding["level"] != "ok")
    assert "owm init" in wrong["identity"]["remedy"]


def test_version_is_the_package_s(owm: Cli) -> None:
    assert owm("version").out.strip() == __version__
    assert owm("version", "--json").json == {"version": __version__}
