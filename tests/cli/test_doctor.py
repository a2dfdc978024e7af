"""owm doctor: each check finds what is wrong and names the remedy."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from owm.model import ModelCache
from tests.cli._run import Cli
from tests.model.test_cache import gguf

Findings = dict[str, dict[str, Any]]


@contextmanager
def answering(answers: dict[str, object]) -> Iterator[str]:
    """A server on the loopback that answers these paths with JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho 'Test Card, {mib}, 1.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def diagnosed(owm: Cli, folder: Path, status: dict[str, object] | None = None, *, settings: str = "") -> Findings:
    (folder / "owm.toml").write_text(settings or "[node]\nroles = ['worker']\n")
    if status is None:
        found = owm("doctor", "--data-dir", str(folder), "--json").json
    else:
        with answering({"/local/status": {"connections": 3, **status}}) as url:
            running = {"peer_id": "12D3", "pid": os.getpid(), "health_url": url}
            (folder / "peer.json").write_text(json.dumps(running))
            found = owm("doctor", "--data-dir", str(folder), "--json").json
    for finding in found["findings"]:
        assert finding["remedy"] or finding["level"] == "ok", finding
    return {finding["name"]: finding for finding in found["findings"]}


def test_a_clock_that_is_off_is_found(owm: Cli, tmp_path: Path) -> None:
    off = diagnosed(owm, tmp_path, {"clock_skew_seconds": -31.4})["clock"]
    assert off["level"] == "warning" and "-31.4 s" in off["detail"] and "chrony" in off["remedy"]
    assert diagnosed(owm, tmp_path, {"clock_skew_seconds": 0.2})["clock"]["level"] == "ok"
    assert "three peers" in diagnosed(owm, tmp_path, {"clock_skew_seconds": None})["clock"]["detail"]


def test_a_peer_that_nobody_can_dial_is_found(owm: Cli, tmp_path: Path) -> None:
    hidden = diagnosed(owm, tmp_path, {"inbound_connections": 0, "dialled_by_groups": 0})["reachability"]
    assert hidden["level"] == "warning" and "9000" in hidden["remedy"]
    assert diagnosed(owm, tmp_path, {"inbound_connections": 0, "dialled_by_groups": 2})["reachability"]["level"] == "ok"
    alone = diagnosed(owm, tmp_path, {"connections": 0, "joining": "alone"})["reachability"]
    assert alone["level"] == "warning" and "alone" in alone["detail"]


def test_a_running_peer_that_does_not_answer_is_an_error(owm: Cli, tmp_path: Path) -> None:
    running = {"peer_id": "12D3", "pid": os.getpid(), "health_url": "http://127.0.0.1:1"}
    (tmp_path / "peer.json").write_text(json.dumps(running))
    assert diagnosed(owm, tmp_path)["running peer"]["level"] == "error"


def test_accelerators_and_the_tier_that_they_make_are_shown(
    owm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SRS-NODE-03."""
    card(tmp_path, monkeypatch, 100)
    found = diagnosed(owm, tmp_path, {"bandwidth_mbps": 80.0})
    assert found["accelerators"]["detail"] == "Test Card (100 MiB)"
    assert found["tier"]["level"] == "warning" and "80 Mbps" in found["tier"]["detail"]


def test_a_worker_below_what_its_network_requires_is_an_error(owm: Cli, tmp_path: Path) -> None:
    network = tmp_path / "network.toml"
    network.write_text('name = "strict"\ngenesis_nonce = "1"\nbitcoin_network = "regtest"\nmin_tier = "t3"\n')
    settings = f"[node]\nroles = ['worker']\n[network]\nprofile = '{network}'\n"
    tier = diagnosed(owm, tmp_path, settings=settings)["tier"]
    assert tier["level"] == "error" and "from t3 on" in tier["detail"]


def test_an_override_that_would_raise_the_tier_is_pointed_out(
    owm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(tmp_path, monkeypatch, 100)
    found = diagnosed(owm, tmp_path, settings="[node]\nroles = ['worker']\ntier_override = 't2'\n")
    assert found["tier_override"]["level"] == "warning" and '"t2" is ignored' in found["tier_override"]["detail"]
    shown = owm("config", "show", "--effective", "--config", str(tmp_path / "owm.toml"))
    assert shown.code == 0 and '"t2" is ignored' in shown.err and "ignored" not in shown.out
    assert "tier_override" not in diagnosed(owm, tmp_path, settings="[node]\ntier_override = 't0'\n")
    assert owm("config", "show", "--config", str(tmp_path / "owm.toml")).err == ""


def test_models_and_memory_decide_whether_the_engine_can_start(
    owm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    monkeypatch.setenv("OWM_MODEL_CACHE_DIR", str(models))
    (tmp_path / "tiny.gguf").write_bytes(gguf())
    cache = ModelCache(models)
    added = cache.add(tmp_path / "tiny.gguf")
    settings = "[node]\nroles = ['worker']\n[model]\nchat = 'tiny'\nembedding = ''\nmemory_limit_mib = {}\n"
    assert diagnosed(owm, tmp_path, settings=settings.format(1024))["engine"]["level"] == "ok"
    small = diagnosed(owm, tmp_path, settings=settings.format(256))["engine"]
    assert small["level"] == "error" and "model.memory_limit_mib" in small["remedy"]
    cache.path(added).write_bytes(b"damaged")
    found = diagnosed(owm, tmp_path, settings=settings.format(1024))
    assert found["model tiny"]["level"] == "error" and "engine" not in found


def test_a_model_server_is_asked_for_its_models(owm: Cli, tmp_path: Path) -> None:
    settings = "[node]\nroles = ['worker']\n[model]\nengine = 'openai'\nchat = 'mine'\nembedding = ''\nurl = '{}'\n"
    with answering({"/v1/models": {"data": [{"id": "mine"}]}}) as url:
        assert diagnosed(owm, tmp_path, settings=settings.format(f"{url}/v1"))["engine"]["level"] == "ok"
    gone = diagnosed(owm, tmp_path, settings=settings.format(f"{url}/v1"))["engine"]
    assert gone["level"] == "error" and "model.url" in gone["remedy"]
    with answering({"/v1/models": {"data": [{"id": "theirs"}]}}) as url:
        other = diagnosed(owm, tmp_path, settings=settings.format(f"{url}/v1"))["engine"]
    assert other["level"] == "error" and "theirs" in other["detail"] and "chat" in other["remedy"]
    assert diagnosed(owm, tmp_path, settings=settings.format(""))["engine"]["level"] == "error"
