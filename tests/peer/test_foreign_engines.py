"""Models that the operator brings: a GGUF file of their own, and a server of OpenAI's dialect behind the worker."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from owm.api import NoWorker
from owm.config import ModelSettings, expand
from owm.directory import Peer as KnownPeer
from owm.model import SHIPPED, ChatMessage, Engine, GenerateRequest, ModelCache, Token, engine_of
from owm.peer import Peer
from tests.cli._run import Cli
from tests.model._servers import llama_server, settings
from tests.peer._peers import address, ask, hub, peer, running, until

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of France?"


async def directly(engine: Engine) -> str:
    """What the engine itself answers to what :func:`ask` asks."""
    request = GenerateRequest(messages=(ChatMessage("user", QUESTION),), max_tokens=6)
    async with engine.generate(request) as items:
        return "".join([item.text async for item in items if isinstance(item, Token)])


def worker_in(gateway: Peer) -> KnownPeer:
    (found,) = [known for known in gateway.directory.peers() if "worker" in known.manifest.roles]
    return found


async def test_a_gguf_file_of_the_operators_is_added_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = SHIPPED["smollm2-135m-instruct"]
    shipped = ModelCache(expand(ModelSettings().model_cache_dir))
    shipped.pull(card)
    file = tmp_path / "My Model.gguf"
    shutil.copyfile(shipped.path(card), file)
    monkeypatch.setenv("OWM_MODEL_CACHE_DIR", str(tmp_path / "cache"))
    owm = Cli(capsys)

    added = owm("models", "add", str(file), "--id", "my-model", "--json").json
    assert (added["id"], added["present"], added["kind"]) == ("my-model", True, "chat")
    assert added["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert owm("models", "add", str(file), "--id", "my-model").code == 2  # the name is taken now
    assert owm("models", "add", str(file)).code == 2  # its own name has a space: another is asked for
    file.unlink()  # the cache has its own copy
    assert owm("models", "list", "--verify").code == 0

    engine = engine_of(ModelSettings(chat="my-model", embedding="", model_cache_dir=str(tmp_path / "cache")))
    net = hub()
    async with running() as peers:
        gateway = await peers.start(peer(net, "gateway", ["gateway"]))
        worker = await peers.start(peer(net, "worker", via=[address(gateway)], engine=engine))
        await until(lambda: bool(gateway.directory.peers()), 20)
        manifest = worker_in(gateway).manifest
        assert [(model.id, model.sha256) for model in manifest.models] == [("my-model", added["sha256"])]
        assert manifest.engine == "llama.cpp" and not manifest.unaudited
        text, who = await ask(gateway, QUESTION)
        assert text and text == await directly(engine)
        assert who == str(worker.parts.identity.peer_id)


async def test_llama_cpps_own_server_answers_through_the_network_and_is_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = hub()
    with llama_server() as (url, process):
        given = settings(url, monkeypatch)
        owner = peer(net, "worker").parts.identity.peer_id
        engine = engine_of(given, owner)
        async with running() as peers:
            gateway = await peers.start(peer(net, "gateway", ["gateway"]))
            worker = await peers.start(peer(net, "worker", via=[address(gateway)], engine=engine))
            await until(lambda: bool(gateway.directory.peers()), 20)
            manifest = worker_in(gateway).manifest
            assert manifest.engine == "openai" and manifest.unaudited and manifest.slots
            assert [model.id for model in manifest.models] == ["llama-server"]
            assert manifest.models[0].sha256 != engine_of(given).models[0].sha256  # its own, not the URL's
            text, who = await ask(gateway, QUESTION)
            assert text and text == await directly(engine)
            assert who == str(worker.parts.identity.peer_id)

            process.kill()
            with pytest.raises(NoWorker):
                await ask(gateway, QUESTION)
            await until(lambda: worker_in(gateway).manifest.slots == 0, 10)
            assert not worker.health().ready
            with llama_server(f"port={url.rsplit(':', 1)[1]}"):
                await until(lambda: worker_in(gateway).manifest.slots > 0, 60)
                assert worker.health().ready
                assert (await ask(gateway, QUESTION))[0] == text
