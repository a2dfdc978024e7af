"""llama.cpp inside the engine process, through xllamacpp: continuous batching over several slots."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import xllamacpp

from owm.model._core_fragments import UNKNOWN, Fragments, byte_tokens
from owm.model._gguf import vocabulary
from owm.model._jobs import Refusal

__all__ = ["Llama"]

# Tokens of prompts in one step; between steps a request can be cancelled. On one CPU core 64 take about half a second,
# and were no slower than larger steps (135M model: 131 tokens/s with 512, 136 with 128, 129 with 64, but 83 with 32).
_CPU_STEP: Final = 64
_GPU_STEP: Final = 512
_HIGHEST_SEED: Final = 2**32 - 2  # llama.cpp takes the one above it for "any"
_CPU: Final = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Llama:
    """One loaded model.

    The library opens an HTTP server in any case. Here it listens on a socket in a private folder, asks for a key, and
    serves only what the library offers nowhere else: the chat template and the tokenizer.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._context = settings["context"]
        self._folder = tempfile.mkdtemp(prefix="owm-engine-")  # mode 0700
        self._socket = str(Path(self._folder, "engine.sock"))
        self._key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = settings["weights"]
        params.n_parallel = settings["slots"]
        params.n_ctx = settings["context"] * settings["slots"]  # the total: it is divided by the slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
        params.verbosity = -1
        params.hostnames = [self._socket]
        params.api_keys = [self._key]
        params.ui = False
        params.n_threads_http = 1
        params.cache_ram_mib = 0
        on_cpu = all(device["type"] == _CPU for device in xllamacpp.get_device_info())
        params.n_batch = params.n_ubatch = _CPU_STEP if on_cpu else _GPU_STEP
        self._server = xllamacpp.Server(params)
        template = self._ask("GET", "/props")["chat_template"]
        self.template_sha256 = hashlib.sha256(template.encode()).hexdigest()
        words = vocabulary(Path(settings["weights"]))
        special = words.special
        self._fragments = Fragments(byte_tokens(words.model, words.tokens))
        # What a vocabulary defines for its own ends (spaces, tags) is text; what its template uses marks turns.
        steering = {*special.control, *(text for text in special.user_defined if text.strip() and text in template)}
        texts = sorted(map(re.escape, steering), key=len, reverse=True)
        self._steering = re.compile("|".join(texts)) if texts else None
        self._spelt: dict[str, list[int]] = {}

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = _UnixConnection(self._socket)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            found = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise Refusal("invalid", str(found.get("error", {}).get("message", found))[:300])
        return found

    def _tokens(self, messages: list[dict[str, str]]) -> list[int]:
        """The rendered prompt. Only the template may steer the model: the same texts in a message are spelt out.

        Texts such as ``<|im_end|>`` in a message are hidden behind marks while the template is rendered, and take their
        places again as the tokens of their letters. A prompt without them has the very tokens that llama.cpp gives it.
        """
        hidden: list[str] = []
        mark = f"\ue000{secrets.token_hex(8)}:"  # nobody can write it in advance

        def hide(match: re.Match[str]) -> str:
            hidden.append(match[0])
            return f"{mark}{len(hidden) - 1}\ue001"

        if self._steering is not None:
            messages = [{**found, "content": self._steering.sub(hide, found["content"])} for found in messages]
        prompt = self._ask("POST", "/apply-template", {"messages": messages})["prompt"]
        content: list[str | int] = []
        for number, piece in enumerate(re.split(f"{mark}(\\d+)\ue001", prompt)):
            if number % 2:
                content += self._spell(hidden[int(piece)])
            elif piece or number == 0:  # the first stands for the beginning of the text, even if it is empty
                content.append(piece)
        return self._tokenize(content if hidden else prompt, steering=True)

    def _spell(self, text: str) -> list[int]:
        """The tokens of a steering text as plain text; cut, since some vocabularies read it whole in any case."""
        if text not in self._spelt:
            self._spelt[text] = [
                token for part in (text[:1], text[1:]) if part for token in self._tokenize(part, steering=False)
            ]
        return self._spelt[text]

    def _tokenize(self, content: str | list[str | int], *, steering: bool) -> list[int]:
        """The tokens of a text, or of a list of texts and tokens. ``steering``: it may hold texts that steer."""
        body = {"content": content, "add_special": steering, "parse_special": steering}
        tokens: list[int] = self._ask("POST", "/tokenize", body)["tokens"]
        return tokens

    def count(self, messages: list[dict[str, str]]) -> int:
        """Tokens of the rendered prompt."""
        return len(self._tokens(messages))

    def generate(self, request: dict[str, Any], send: Callable[..., None], cancelled: Callable[[], bool]) -> None:
        """Run one generation: ``send`` gets text, ids and log-probabilities as they come, then the end."""
        tokens = self._tokens(request["messages"])
        room = self._context - len(tokens)
        if room < 1:
            raise Refusal(
                "too_long", f"the prompt has {len(tokens)} tokens; the context of {self._context} leaves no room"
            )
        run = _Run(self._fragments, len(tokens), send, cancelled)
        self._server.handle_completions(
            {
                "prompt": tokens,
                "max_tokens": min(request["max_tokens"], room),
                "temperature": request["temperature"],
                "top_p": request["top_p"],
                "seed": min(request["seed"], _HIGHEST_SEED),
                "stop": request["stop"],
                "n_probs": 1,
                "stream": True,
                "return_progress": True,  # calls back while it reads the prompt too, so that this can be cancelled
                "timings_per_token": True,  # says how many tokens there have been
                "cache_prompt": False,
            },
            run.chunk,
        )
        run.end()

    def close(self) -> None:
        """Remove the socket's folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


class _Run:
    """One generation, as its chunks come."""

    def __init__(
        self, fragments: Fragments, prompt: int, send: Callable[..., None], cancelled: Callable[[], bool]
    ) -> None:
        self._fragments = fragments
        self._send = send
        self._cancelled = cancelled
        self._prompt = prompt
        self._completion = 0
        self._told = 0  # tokens sent so far
        self._held = False  # text is held back that may be the beginning of a stop sequence
        self._finish = "stop"
        self._error: Refusal | None = None

    def chunk(self, found: Any) -> bool:
        """Take what the library sends; True stops it."""
        # What a callback raises is swallowed by the library: keep it and stop.
        try:
            if self._cancelled():
                return True
            self._take(json.loads(found) if not isinstance(found, dict) else found)
        except Exception as error:  # noqa: BLE001
            self._error = error if isinstance(error, Refusal) else Refusal("failed", str(error))
        return self._error is not None

    def _take(self, found: dict[str, Any]) -> None:
        if "error" in found:
            code = "too_long" if "context" in found["error"].get("type", "") else "failed"
            raise Refusal(code, found["error"].get("message", "the engine refused"))
        choice = found["choices"][0]
        entries = (choice.get("logprobs") or {}).get("content") or []
        if entries:
            self._piece(choice["text"], entries, found.get("timings", {}).get("predicted_n", 0))
        elif choice["text"]:
            raise Refusal("failed", "the engine sent text without its tokens")
        if choice.get("finish_reason"):
            self._finish = "length" if choice["finish_reason"] == "length" else "stop"
        if usage := found.get("usage"):
            self._completion = usage["completion_tokens"]
            self._prompt = usage["prompt_tokens"]

    def _piece(self, text: str, entries: list[dict[str, Any]], count: int) -> None:
        """Tell every token of a piece, the last ones by the engine's word, those before them as far as is known."""
        ids = [entry["id"] for entry in entries]
        hidden = max(0, count - self._told - len(ids))
        before = [UNKNOWN] * hidden
        if hidden and len(ids) == 1 and not self._held:
            before = self._fragments.before(bytes(entries[0]["bytes"]), ids[0], hidden)
        self._held = not text
        self._tell(text, before + ids, [math.nan] * hidden + [entry["logprob"] for entry in entries])

    def _tell(self, text: str, ids: list[int], logprobs: list[float]) -> None:
        self._told += len(ids)
        self._send(t=text, i=ids, l=logprobs)

    def end(self) -> None:
        """Tell the end; raises Refusal when it was none."""
        if self._error is not None:
            raise self._error
        if self._cancelled():
            raise Refusal("cancelled", "cancelled")
        if (hidden := self._completion - self._told) > 0:  # the limit fell within a character
            self._tell("", [UNKNOWN] * hidden, [math.nan] * hidden)
        self._send(done=self._finish, prompt=self._prompt, completion=self._completion)
