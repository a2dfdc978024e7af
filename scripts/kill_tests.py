"""Kills engines, workers and the first peer of real devnets while answers are under way, again and again.

    python -m scripts.kill_tests --rounds 20

Two devnets run side by side: one of two gateways and two workers, one of a gateway and a single worker. In every round
of each, the answering worker's engine, and then the worker itself, is killed with SIGKILL: after at least five tokens
of a stream, of an OpenAI stream and of an answer that is not streamed, and before anything was sent. In the first
devnet the first peer is killed too: the others go on answering, a newcomer joins through an address that one of them
remembers, and the first peer finds back by itself, as every killed worker must. Each case is one line; the exit code is
0 only if all held. ``--only`` chooses cases by a part of their name, ``--json`` prints one document at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import trio

from owm.cli._devnet import Member
from scripts._kill_checks import (
    TOKENS_BEFORE_KILL,
    Failed,
    check_chat_cut,
    check_none_left,
    check_refused,
    check_restarted,
    check_whole,
    expect,
)
from scripts._kill_lab import Lab

__all__ = ["Outcome", "main", "run"]

_T = TypeVar("_T")
Case = Callable[[Lab, str], Awaitable[None]]


@dataclass(frozen=True)
class Outcome:
    """One case of one round."""

    round: int
    case: str
    seconds: float  #: of the case; bringing back who was killed is not counted
    ok: bool
    error: str = ""


async def streamed(lab: Lab, victim: str) -> None:
    """After five tokens of a stream: one restart, then the whole answer of another worker."""
    before = await lab.generated()

    async def strike() -> None:
        await lab.kill(await lab.answering(before), victim)

    check_restarted((await lab.stream(strike))[1])


async def not_streamed(lab: Lab, victim: str) -> None:
    """After five tokens of an answer that is not streamed: the client gets a whole answer and notices nothing."""
    response = await _ask_and_kill(lab, victim)
    expect(response.status_code == 200, f"{response.status_code}: {response.text}")
    expect(response.json()["attempts"] == 2 and bool(response.json()["answer"]), response.text)


async def nothing_sent(lab: Lab, victim: str) -> None:
    """While the worker reads the prompt: the stream is whole and tells of nothing."""
    check_whole((await _stream_and_kill_at_once(lab, victim))[1])


async def chat(lab: Lab, victim: str) -> None:
    """After five tokens of an OpenAI stream: one error chunk and the end, whoever else is there."""
    before = await lab.generated()

    async def strike() -> None:
        await lab.kill(await lab.answering(before), victim)

    status, chunks = await lab.chat(strike)
    expect(status == 200, f"{status}: {chunks}")
    check_chat_cut([data for _, data in chunks])


async def none_left_streamed(lab: Lab, victim: str) -> None:
    """After five tokens, and nobody else is there: one error, and not a token after the restart."""
    before = await lab.generated()

    async def strike() -> None:
        await lab.kill(await lab.answering(before), victim)

    check_none_left((await lab.stream(strike))[1])


async def none_left_not_streamed(lab: Lab, victim: str) -> None:
    """The same without a stream: one error response."""
    response = await _ask_and_kill(lab, victim)
    check_refused(response.status_code, response.json())


async def none_left_nothing_sent(lab: Lab, victim: str) -> None:
    """A stream that had not begun: an ordinary error response."""
    status, events = await _stream_and_kill_at_once(lab, victim)
    expect(len(events) == 1, f"expected the error alone: {events}")
    check_refused(status, events[0][1])


async def first_peer_dies(lab: Lab, _victim: str) -> None:
    """The others go on answering, a newcomer joins through any of them, and the dead one finds back."""
    first = lab.gateways[0]
    lab.kill_now(first)
    response = await lab.ask(tokens=8)
    expect(response.status_code == 200, f"after the first peer's death: {response.status_code} {response.text}")
    newcomer = await lab.newcomer("newcomer-" + lab.random.randbytes(4).hex(), not_through=first)
    await _answers(lab, newcomer, "the newcomer")
    await lab.dismiss(newcomer)
    await lab.devnet.add(first, None)
    await _answers(lab, first, "the first peer, back by what it remembered,")


async def _answers(lab: Lab, gateway: Member, who: str) -> None:
    try:
        await lab.wait_knows(gateway)
    except trio.TooSlowError as error:
        raise Failed(f"{who} did not learn of the workers") from error
    response = await lab.ask(through=gateway, tokens=8)
    if response.status_code == 503:  # what it learned first may be a worker's last life: it says when to ask again
        await trio.sleep(float(response.headers["Retry-After"]))
        response = await lab.ask(through=gateway, tokens=8)
    expect(response.status_code == 200, f"{who} could not answer: {response.status_code} {response.text}")


async def _ask_and_kill(lab: Lab, victim: str) -> httpx.Response:
    return await _while_asking(lab, lab.ask, victim, TOKENS_BEFORE_KILL)


async def _stream_and_kill_at_once(lab: Lab, victim: str) -> tuple[int, list[tuple[str, Any]]]:
    return await _while_asking(lab, lambda: lab.stream(trio.lowlevel.checkpoint, lab.long_question()), victim, 0)


async def _while_asking(lab: Lab, ask: Callable[[], Awaitable[_T]], victim: str, tokens: int) -> _T:
    """What ``ask`` gets when the worker that answers dies after so many tokens."""
    before = await lab.generated()
    found: list[_T] = []
    killed = False
    async with trio.open_nursery() as nursery:

        async def asking() -> None:
            found.append(await ask())
            if not killed:
                raise Failed(f"answered before anybody was killed: {found[0]}")

        nursery.start_soon(asking)
        worker = await lab.answering(before, tokens)
        killed = True
        await lab.kill(worker, victim)
    return found[0]


#: Engine and worker take turns: an engine that dies again and again is restarted later each time.
_VICTIMS: Final = ("engine", "worker")
_WITH_ANOTHER: Final[Sequence[Case]] = (streamed, not_streamed, nothing_sent, chat)
_ALONE: Final[Sequence[Case]] = (none_left_streamed, none_left_not_streamed, none_left_nothing_sent, chat)


@dataclass(frozen=True)
class _Step:
    name: str
    case: Case
    victim: str


def steps(only: Sequence[str]) -> tuple[list[_Step], list[_Step]]:
    """What a round does in the devnet with two workers, and in the one with a single worker."""
    pair = [_Step("first peer", first_peer_dies, "")]
    pair += [_Step(f"{c.__name__} {v}", c, v) for c in _WITH_ANOTHER for v in _VICTIMS]
    alone = [_Step(f"{c.__name__} {v}", c, v) for c in _ALONE for v in _VICTIMS]
    named = [
        [
            _Step(s.name.replace("_", " ") + (", alone" if s.case is chat and at else ""), s.case, s.victim)
            for s in found
        ]
        for at, found in enumerate((pair, alone))
    ]
    chosen = [[s for s in found if not only or any(part in s.name for part in only)] for found in named]
    return chosen[0], chosen[1]


async def _lane(lab: Lab, todo: Sequence[_Step], rounds: int, note: Callable[[Outcome], None]) -> None:
    """Every step in every round; between two, everybody is brought back. Ends early when that fails."""
    if not todo:
        return
    try:
        if await _noted(lab.start, 0, "start", note, only_failures=True):
            for number in range(1, rounds + 1):
                for step in todo:
                    await _noted(partial(step.case, lab, step.victim), number, step.name, note)
                    if not await _noted(lab.bring_back, number, f"after {step.name}", note, only_failures=True):
                        return
    finally:
        with trio.CancelScope(shield=True):
            await lab.stop()


async def _noted(
    do: Callable[[], Awaitable[None]],
    number: int,
    name: str,
    note: Callable[[Outcome], None],
    *,
    only_failures: bool = False,
) -> bool:
    started = time.monotonic()
    errors: list[str] = []
    try:
        await do()
    except* Exception as group:  # noqa: BLE001 - whatever breaks a case is its failure; the next one runs all the same
        errors = [f"{type(one).__name__}: {one}" for one in group.exceptions]
    if errors or not only_failures:
        note(Outcome(number, name, round(time.monotonic() - started, 2), not errors, "; ".join(errors)))
    return not errors


async def run(folder: Path, rounds: int, only: Sequence[str], note: Callable[[Outcome], None]) -> None:
    """Both devnets side by side; ``note`` gets each outcome as it comes."""
    pair, alone = steps(only)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_lane, Lab(folder / "pair", gateways=2, workers=2), pair, rounds, note)
        nursery.start_soon(_lane, Lab(folder / "alone", gateways=1, workers=1), alone, rounds, note)


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, object]:
    """What ``--json`` prints: every outcome, and for each case its times."""
    cases = {}
    for name in dict.fromkeys(one.case for one in outcomes):
        times = [one.seconds for one in outcomes if one.case == name]
        failed = sum(not one.ok for one in outcomes if one.case == name)
        cases[name] = {"runs": len(times), "failed": failed, "median_s": round(statistics.median(times), 2),
                       "worst_s": max(times)}  # fmt: skip
    return {
        "ok": bool(outcomes) and all(one.ok for one in outcomes),
        "failed": sum(not one.ok for one in outcomes),
        "seconds": round(seconds, 1),
        "cases": cases,
        "outcomes": [asdict(one) for one in outcomes],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and run; 0 only if every case of every round held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases whose name holds this")
    parser.add_argument("--json", action="store_true", help="one JSON document at the end instead of lines")
    given = parser.parse_args(arguments)
    outcomes: list[Outcome] = []
    width = max((len(step.name) for found in steps(given.only) for step in found), default=0)
    if not width or given.rounds < 1:
        parser.error("nothing to run: no case has such a name, or there is no round")

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if not given.json:
            verdict = "ok" if outcome.ok else f"FAILED: {outcome.error}"
            print(f"{outcome.round:>3}  {outcome.case:<{width}} {outcome.seconds:6.1f} s  {verdict}", flush=True)

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="owm-kill-") as folder:
        trio.run(run, Path(folder), given.rounds, given.only, note)
    found = summary(outcomes, time.monotonic() - started)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        for name, case in found["cases"].items():  # type: ignore[attr-defined]
            print(f"{name:<{width}}  {case['runs']:>3} runs, {case['failed']} failed, "
                  f"median {case['median_s']:.1f} s, worst {case['worst_s']:.1f} s")  # fmt: skip
        print(f"all held in {found['seconds']} s" if found["ok"] else f"{found['failed']} failed")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
