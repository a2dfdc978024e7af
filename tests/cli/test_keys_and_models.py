"""owm keys, owm models, owm tasks."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from owm.api.keys import KeyStore
from owm.cli._local import KEY_FILE, KEYS_FILE, local_key
from owm.config import load_settings
from owm.model import ModelCache
from owm.store import Retention, Store, TaskEntry, task_view
from owm.tasks import InferenceTask, Message
from owm.tasks._receipts import answer_content, input_content
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


async def test_one_task_is_shown_with_what_was_kept_of_it(
    owm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWM_HEALTH_PORT", "1")
    effective = load_settings(None, {"node.data_dir": str(tmp_path)}, {})
    body = InferenceTask(messages=(Message("user", "what is kept?"),))
    given, answer = input_content(bytes(32), body), answer_content([1], [-5], "", 0, "aa", "an answer")
    entry = TaskEntry(id="t", role="worker", type="inference", peer=b"", state="done", input_hash=given.hash)
    entry = msgspec.structs.replace(entry, output_hash=answer.hash, salt=bytes(32))
    async with Store(effective.database_path, retention=Retention(contents=True)).running() as store:
        await store.log_task(entry, given, answer)
        await store.log_task(msgspec.structs.replace(entry, id="u", job="t", input_hash=b"other"))
    first, second = sorted(owm("tasks", "--id", "t", "--data-dir", str(tmp_path), "--json").json, key=lambda t: t["id"])
    assert first["input"]["messages"][0]["content"] == "what is kept?" and first["output"] == "an answer"
    assert (second["id"], second["input"]) == ("u", None)
    shown = owm("tasks", "--id", "t", "--data-dir", str(tmp_path)).out
    assert "an answer" in shown and "not kept" in shown
    unknown = owm("tasks", "--id", "none", "--data-dir", str(tmp_path))
    assert unknown.code == 2 and "'none'" in unknown.err


def test_without_a_peer_or_a_log_tasks_says_what_to_do(
    owm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWM_HEALTH_PORT", "1")
    outcome = owm("tasks", "--data-dir", str(tmp_path))
    assert outcome.code == 6
    assert "--data-dir" in outcome.err
