"""owm keys, owm models, owm tasks."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from owm.api.keys import KeyStore
from owm.cli._local import KEY_FILE, KEYS_FILE, local_key
from owm.config import load_settings
from owm.model import ModelCache
from owm.store import Store, TaskEntry, task_view
from tests.cli._run import Cli


def test_a_key_is_made_listed_and_revoked(owm: Cli, tmp_path: Path) -> None:
    at = ("--data-dir", str(tmp_path))
    made = owm("keys", "add", "--label", "mine", *at, "--json").json
    assert made["secret"].startswith("owm_") and made["per_day"] == 100
    listed = owm("keys", "list", *at)
    assert made["id"] in listed.out and made["secret"] not in listed.out
    assert owm("keys", "revoke", made["id"], *at).code == 0
    store = KeyStore(tmp_path / KEYS_FILE)
    assert store.find(made["secret"]) is None
    store.close()
    unknown = owm("keys", "revoke", "key_none", *at)
    assert (unknown.code, unknown.out) == (2, "")


def test_the_keys_lie_where_the_settings_say(tmp_path: Path) -> None:
    assert load_settings(None, {"node.data_dir": str(tmp_path)}, {}).keys_path == tmp_path / KEYS_FILE


def test_this_machine_s_key_is_made_once_and_again_when_revoked(tmp_path: Path) -> None:
    first = local_key(tmp_path)
    assert local_key(tmp_path) == first
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    store = KeyStore(tmp_path / KEYS_FILE)
    (key,) = store.list()
    assert key.per_day == 0
    store.revoke(key.id)
    store.close()
    assert local_key(tmp_path) != first


def test_models_that_are_not_here_are_listed_as_such(owm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWM_MODEL_CACHE_DIR", str(tmp_path / "none"))
    rows = owm("models", "list", "--json").json
    assert [row["present"] for row in rows] == [False] * len(rows)
    assert {"smollm2-135m-instruct", "all-minilm-l6-v2"} <= {row["id"] for row in rows}
    assert len(owm("models", "list").out.splitlines()) == len(rows) + 1


def test_an_unknown_model_is_exit_code_3_and_names_the_known(owm: Cli) -> None:
    outcome = owm("models", "pull", "nonesuch")
    assert outcome.code == 3
    assert "smollm2-135m-instruct" in outcome.err


def test_what_is_no_gguf_is_not_added(owm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWM_MODEL_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"\x80\x04\x95pickle, for instance")
    assert owm("models", "add", str(file)).code == 3
    assert "bad" not in [card.id for card in ModelCache(tmp_path / "cache").cards()]


async def test_the_task_log_is_read_without_a_peer(owm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SRS-NODE-06."""
    monkeypatch.setenv("OWM_HEALTH_PORT", "1")
    effective = load_settings(None, {"node.data_dir": str(tmp_path)}, {})
    async with Store(effective.database_path).running() as store:
        for number in range(3):
            entry = TaskEntry(
                id=f"t{number}", role="worker", type="inference", peer=b"", state="accepted", created=float(number)
            )
            await store.log_task(entry)
        found = owm("tasks", "--data-dir", str(tmp_path), "--limit", "2", "--json").json
    assert [task["id"] for task in found] == ["t2", "t1"]
    assert set(found[0]) == set(task_view(entry)), "the keys of the view of a running peer"
    shown = owm("tasks", "--data-dir", str(tmp_path)).out
    assert "t2" in shown and "payment" in shown.splitlines()[0]


def test_without_a_peer_or_a_log_tasks_says_what_to_do(
    owm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWM_HEALTH_PORT", "1")
    outcome = owm("tasks", "--data-dir", str(tmp_path))
    assert outcome.code == 6
    assert "--data-dir" in outcome.err
