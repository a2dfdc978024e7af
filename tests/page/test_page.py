"""The landing page in a browser, against a real gateway: what a visitor sees of answers, restarts and failures."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from owm.api import Answered, AnswerEvent, Restarted, Started, TokenText, WorkFailed
from tests.api._gateway import MODEL, ScriptedNetwork, Served, served
from tests.page._chromium import Page, chromium, chromium_missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(chromium_missing()) and not os.environ.get("CI"), reason=chromium_missing()),
]

ANSWER = "document.getElementById('answer').textContent"
NOTICE = "document.getElementById('notice').textContent"


class Restarting(ScriptedNetwork):
    """Loses its worker after three words; goes on when the test lets it."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.lose = trio.Event()
        self.complete = trio.Event()
        self.fails = fails

    async def _events(self) -> AsyncIterator[AnswerEvent]:
        yield Started("first", 1, MODEL.sha256)
        for word in ("the ", "lost ", "answer "):
            yield TokenText(word)
        await self.lose.wait()
        yield Restarted("the worker was lost")
        yield Started("second", 2, MODEL.sha256)
        yield TokenText("anew ")
        await self.complete.wait()
        if self.fails:
            raise WorkFailed("given up; ask again")
        yield TokenText("and whole")
        yield Answered(
            worker="second",
            attempts=2,
            receipt_id="ff" * 32,
            model=MODEL.id,
            model_sha256=MODEL.sha256,
            finish="stop",
            prompt_tokens=3,
            completion_tokens=3,
        )


@asynccontextmanager
async def opened(folder: Path, network: ScriptedNetwork, width: int = 1280) -> AsyncIterator[tuple[Served, Page]]:
    async with served(folder, network, page_requests_per_day=1000) as gateway, chromium() as page:
        await page.open(gateway.url, width)
        await page.until("document.querySelectorAll('#nodes tr').length === 1 && state.className === 'state up'")
        yield gateway, page
        assert page.errors == []


async def ask(page: Page, text: str = "Tell me") -> None:
    await page.run(f"question.value = {text!r}; document.getElementById('form').requestSubmit()")


async def ended(page: Page) -> None:
    await page.until("!document.getElementById('send').disabled && !answer.classList.contains('live')")


async def test_after_a_restart_only_the_new_answer_is_shown(tmp_path: Path) -> None:
    network = Restarting()
    async with opened(tmp_path, network) as (_, page):
        await ask(page)
        await page.until(f"{ANSWER} === 'the lost answer '")
        network.lose.set()
        await page.until(f"{ANSWER} === 'anew '")
        assert "another one answers" in await page.run(NOTICE)
        network.complete.set()
        await ended(page)
        assert await page.run(ANSWER) == "anew and whole"
        assert await page.run(NOTICE) == ""
        assert "w-" in await page.run("facts.textContent")


async def test_a_failure_after_a_restart_is_told(tmp_path: Path) -> None:
    network = Restarting(fails=True)
    network.lose.set()
    network.complete.set()
    async with opened(tmp_path, network) as (_, page):
        await ask(page)
        await ended(page)
        assert await page.run(NOTICE) == "given up; ask again"
        assert await page.run("notice.classList.contains('bad') && facts.hidden")


async def test_a_stream_that_merely_ends_is_no_success(tmp_path: Path) -> None:
    """As when a proxy between page and gateway gives up."""
    half = r"event: token\ndata: {\"text\": \"half an \"}\n\n"
    async with opened(tmp_path, ScriptedNetwork()) as (_, page):
        await page.run(f'window.fetch = async () => new Response("{half}")')
        await ask(page)
        await ended(page)
        assert await page.run(ANSWER) == "half an "
        assert "not complete" in await page.run(NOTICE)
        assert await page.run("notice.classList.contains('bad') && facts.hidden")
        await page.run('window.fetch = async () => new Response("<h1>Bad gateway</h1>", { status: 502 })')
        await ask(page)
        await ended(page)
        assert "502" in await page.run(NOTICE)


async def test_a_connection_that_breaks_is_no_success_and_no_unreachable_gateway(tmp_path: Path) -> None:
    network = Restarting()
    async with chromium() as page:
        with trio.CancelScope() as gone:
            async with served(tmp_path, network) as gateway:
                await page.open(gateway.url)
                await ask(page)
                await page.until(f"{ANSWER} === 'the lost answer '")
                gone.cancel()
                await trio.lowlevel.checkpoint()
        await ended(page)
        assert "not complete" in await page.run(NOTICE)
        await ask(page)
        await ended(page)
        assert "cannot be reached" in await page.run(NOTICE)


async def test_stopping_keeps_what_came(tmp_path: Path) -> None:
    async with opened(tmp_path, Restarting()) as (_, page):
        await ask(page)
        await page.until(f"{ANSWER} === 'the lost answer '")
        await page.run("document.getElementById('stop').click()")
        await ended(page)
        assert (await page.run(ANSWER), await page.run(NOTICE)) == ("the lost answer ", "Stopped.")


async def test_a_refusal_is_shown_in_its_own_words(tmp_path: Path) -> None:
    async with opened(tmp_path, ScriptedNetwork()) as (_, page):
        await ask(page, "word " * 1000)
        await ended(page)
        assert "shorten it" in await page.run(NOTICE)


async def test_markup_in_an_answer_stays_text(tmp_path: Path) -> None:
    class Hostile(ScriptedNetwork):
        async def _events(self) -> AsyncIterator[AnswerEvent]:
            yield TokenText("<img src=x onerror=document.title='taken'>")
            raise WorkFailed("<b>that is all</b>")

    async with opened(tmp_path, Hostile()) as (_, page):
        await ask(page)
        await ended(page)
        assert "<img src=x" in await page.run(ANSWER)
        assert await page.run("result.querySelectorAll('img, b').length") == 0
        assert await page.run("document.title") == "Open World Model"


@pytest.mark.parametrize("width", [390, 1280])
async def test_nothing_sticks_out_at_the_side(tmp_path: Path, width: int) -> None:
    async with opened(tmp_path, ScriptedNetwork(), width) as (_, page):
        await ask(page, "Wider_than_any_window_" * 20)
        await ended(page)
        assert await page.run("document.documentElement.scrollWidth") <= width
        wide = "[...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
        assert await page.run(wide) == 0
