"""The root command: start-up, help, errors and exit codes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from owm import errors
from owm.cli import _app
from tests.cli._run import Cli

HEAVY = ("libp2p", "quart", "quart_trio", "hypercorn", "numpy", "xllamacpp", "torch", "httpx", "rich", "trio", "nacl")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom owm.cli._app import app, run\nrun(app, ['--help'])\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert "LOADED []" in python(code)


def test_importing_owm_loads_no_third_party_package() -> None:
    code = "import sys; before = set(sys.modules); import owm; print(sorted(set(sys.modules) - before))"
    assert python(code).strip() == "['owm']"


@pytest.mark.slow
def test_help_starts_within_half_a_second() -> None:
    """The best of five, because the machine that tests may be busy."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "owm", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.5


def test_every_command_is_listed_and_has_help_with_an_example(owm: Cli) -> None:
    listed = owm("--help").out
    for name, (_, text) in _app.COMMANDS.items():
        assert f"  {name}" in listed and text in listed
        page = owm(name, "--help")
        assert page.code == 0
        assert name == "version" or "Example" in page.out, name


def test_a_misspelt_command_names_the_nearest(owm: Cli) -> None:
    outcome = owm("pear")
    assert outcome.code == 2
    assert "did you mean `owm peer`" in outcome.err


def test_each_family_of_errors_has_its_documented_exit_code() -> None:
    families = [getattr(errors, name) for name in errors.__all__]
    codes = {family.exit_code for family in families}
    assert codes == {1, 2, 3, 4, 5, 6}
    assert codes <= set(_app.EXIT_CODES)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["peer", "--config", "/nonexistent/owm.toml"], 3, "owm init"),
        (["peer", "--roles", "king"], 3, "unknown role 'king'"),
        (["peer", "--listen", "nowhere:x"], 2, "HOST:PORT"),
        (["devnet", "--peers", "1"], 2, "--peers"),
        (["devnet", "--peers", "3", "--workers", "2"], 2, "stands alone"),
        (["config", "check", "--bogus"], 2, "--bogus"),
        (["status", "--data-dir", "/nonexistent/d"], 6, "no peer answers"),
    ],
)
def test_errors_have_a_message_an_exit_code_and_no_traceback(
    owm: Cli, args: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWM_HEALTH_PORT", "1")  # nothing listens there
    outcome = owm(*args)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_with_json_errors_are_json_too(owm: Cli) -> None:
    outcome = owm("config", "check", "--config", "/nonexistent/owm.toml", "--json")
    assert outcome.code == 3
    assert '"exit_code": 3' in outcome.err


def test_owm_node_start_is_owm_peer(capsys: pytest.CaptureFixture[str]) -> None:
    """SRS-NODE-01: the daemon starts with ``owm-node start --config owm.toml``."""
    with pytest.raises(SystemExit) as stop:
        _app.node_main(["start", "--config", "/nonexistent/owm.toml"])
    assert stop.value.code == 3
    assert "/nonexistent/owm.toml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        _app.node_main(["stop"])
    assert stop.value.code == 2
