"""Carries out a dial plan: the first attempt that succeeds wins, the others are cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import trio

from owm.net._dialer import Attempt, DialPlan
from owm.net.errors import NetworkError, NotDialled

__all__ = ["race"]

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")


async def race(plan: DialPlan, dial: Callable[[str], Awaitable[_T]]) -> tuple[_T | None, dict[str, str]]:
    """Dial as planned; returns what the winner returned (None when all failed) and why the failed ones did.

    ``dial`` must not leave a connection behind when it is cancelled. Whatever it raises is the reason why that one
    attempt failed, for addresses come from strangers; only NotDialled ends the race and is raised, for the other
    addresses would be refused as well.
    """
    winner: list[_T] = []
    reasons: dict[str, str] = {}
    refused: list[NotDialled] = []
    waiting = list(plan.attempts)  # at least one
    running = 0
    changed = trio.Event()
    over = trio.CancelScope()

    async def attempt(one: Attempt) -> None:
        nonlocal running
        try:
            with trio.fail_after(one.timeout):
                winner.append(await dial(one.address))
                over.cancel()
        except trio.TooSlowError:
            reasons[one.address] = f"no answer within {one.timeout:g} s"
        except NotDialled as error:
            refused.append(error)
            over.cancel()
        except (NetworkError, OSError) as error:
            reasons[one.address] = str(error) or type(error).__name__
        except Exception as error:  # noqa: BLE001 - see above
            _log.exception("a dial failed in an unforeseen way", address=one.address)
            reasons[one.address] = f"an unforeseen error: {type(error).__name__}"
        finally:
            running -= 1
            changed.set()

    async def run_all() -> None:
        nonlocal running, changed
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            while waiting and not winner and not refused:
                if running < plan.max_racing and (not running or trio.current_time() >= began + waiting[0].start):
                    running += 1
                    nursery.start_soon(attempt, waiting.pop(0))
                    continue
                changed = trio.Event()
                with trio.CancelScope() as scope:
                    if running < plan.max_racing:
                        scope.deadline = began + waiting[0].start
                    await changed.wait()

    with over:
        await (run_all() if len(waiting) > 1 else attempt(waiting[0]))  # mostly there is nothing to race
    if refused and not winner:
        raise refused[0]
    return (winner[0] if winner else None), reasons
