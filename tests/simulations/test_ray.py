"""Sweeps on Ray: one task for each seed, with the results that a local sweep gives.

Ray itself is an extra of 80 MB. Where it is not installed, a stand-in takes its place that runs the tasks in a thread
of this process, behind the four calls of Ray that are used.
"""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from owm.errors import UsageError
from simulations._scenario import load_scenario
from simulations._sweep import sweep
from tests.simulations.test_scenarios import simulate

pytestmark = pytest.mark.slow


class InProcessRay:
    """``ray.init``, ``remote``, ``wait`` and ``get``; what goes to a task is copied on its way, as Ray does."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.tasks = 0
        self._pool = ThreadPoolExecutor(1)

    def init(self, **options: Any) -> None:
        self.started.append(options)

    def remote(self, function: Any) -> SimpleNamespace:
        def submit(scenario: Any, seed: int) -> Future[Any]:
            assert self.started, "Ray is started before its first task"
            self.tasks += 1
            copied = msgspec.convert(msgspec.to_builtins(scenario), type(scenario))
            return self._pool.submit(function, copied, seed)

        return SimpleNamespace(remote=submit)

    def wait(self, waiting: list[Future[Any]]) -> tuple[list[Future[Any]], list[Future[Any]]]:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        first = next(future for future in waiting if future in done)
        return [first], [future for future in waiting if future is not first]

    def get(self, done: list[Future[Any]]) -> list[Any]:
        return [future.result() for future in done]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray itself is installed")
def test_a_sweep_hands_ray_one_task_for_each_seed_and_yields_what_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = InProcessRay()
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    scenario = load_scenario("baseline", nodes=30, duration=40.0)
    on_ray = {o.seed: (o, measured) for o, measured in sweep(scenario, [1, 2, 3], engine="ray")}
    here = {o.seed: (o, measured) for o, measured in sweep(scenario, [1, 2, 3])}
    assert ray.tasks == 3
    assert on_ray.keys() == here.keys()
    for seed, (outcome, measured) in on_ray.items():
        assert outcome.trace_hash == here[seed][0].trace_hash
        assert measured.operations and len(measured.operations) == len(here[seed][1].operations)


@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra: pip install '.[ray]'")
def test_a_sweep_on_ray_gives_what_a_local_one_gives() -> None:
    scenario = load_scenario("baseline", nodes=30, duration=40.0)
    here = {outcome.seed: outcome.trace_hash for outcome, _ in sweep(scenario, [1, 2, 3])}
    there = {outcome.seed: outcome.trace_hash for outcome, _ in sweep(scenario, [1, 2, 3], engine="ray")}
    assert there == here


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"open-world-model\[ray\]"):
        next(sweep(load_scenario("baseline", nodes=30, duration=40.0), [1], engine="ray"))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray itself is installed")
def test_without_ray_the_command_ends_with_the_code_of_a_usage_error() -> None:
    done = simulate("baseline", "--nodes", "30", "--engine", "ray")
    assert done.returncode == 2
    assert "open-world-model[ray]" in done.stderr and "Traceback" not in done.stderr
