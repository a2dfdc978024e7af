"""Runs several seeds, in this process, on all cores, or on a Ray cluster."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context

from owm.errors import UsageError
from simulations._full import FullWorld
from simulations._measure import Measurements, Outcome, summarise
from simulations._scenario import Scenario
from simulations._world import World

__all__ = ["parse_seeds", "rare_collections", "run_seed", "sweep"]

Progress = Callable[[float], None]


def parse_seeds(text: str) -> list[int]:
    """Read ``7``, ``1,2,5`` or ``1..20``; raises UsageError."""
    try:
        seeds: list[int] = []
        for part in text.split(","):
            first, dots, last = part.partition("..")
            seeds.extend(range(int(first), int(last) + 1) if dots else [int(first)])
    except ValueError as error:
        raise UsageError(f"cannot read the seeds {text!r}: write 7, or 1,2,5, or 1..20") from error
    if not seeds or len(seeds) > 10_000:
        raise UsageError(f"the seeds {text!r} name no run, or too many")
    return list(dict.fromkeys(seeds))


def run_seed(scenario: Scenario, seed: int, progress: Progress | None = None) -> tuple[Outcome, Measurements]:
    """One run. The result depends on the scenario and the seed alone, but for the wall time."""
    started = time.perf_counter()
    with rare_collections():
        world = FullWorld(scenario, seed) if scenario.fidelity == "full" else World(scenario, seed)
        built = time.perf_counter()
        world.run(progress)
    ended = time.perf_counter()
    metrics = summarise(world.measured)
    metrics["setup_seconds"] = round(built - started, 3)
    outcome = Outcome(
        scenario=scenario.name,
        nodes=scenario.nodes,
        seed=seed,
        signatures=scenario.signatures,
        simulated_seconds=scenario.duration,
        wall_seconds=round(ended - started, 3),
        events=world.events,
        messages=world.messages,
        events_per_second=round(world.events / max(ended - built, 1e-9), 1),
        trace_hash=world.trace_hash,
        invariants=world.check(metrics),
        metrics=metrics,
    )
    return outcome, world.measured


@contextmanager
def rare_collections() -> Iterator[None]:
    """Look for reference cycles rarely: full looks at a hundred million objects would take a fifth of the run."""
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(2_000_000, 20, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _on_ray(scenario: Scenario, seeds: Sequence[int]) -> Iterator[tuple[Outcome, Measurements]]:
    """One task for each seed, on the cluster that Ray finds, or on this machine's cores."""
    try:
        import ray  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UsageError(
            "the Ray engine needs Ray: install it with `pip install 'open-world-model[ray]'`, then name a cluster in "
            "RAY_ADDRESS, or leave that and use this machine's cores"
        ) from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    task = ray.remote(run_seed)
    waiting = [task.remote(scenario, seed) for seed in seeds]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield from ray.get(done)


def sweep(
    scenario: Scenario, seeds: Sequence[int], *, jobs: int = 1, engine: str = "local", progress: Progress | None = None
) -> Iterator[tuple[Outcome, Measurements]]:
    """Run all seeds; results come in the order in which they finish.

    Args:
        jobs: processes at once.
        engine: "local" or "ray".
        progress: told the share done of a single run; with several seeds, count the results instead.
    """
    if engine == "ray":
        yield from _on_ray(scenario, seeds)
    elif jobs <= 1 or len(seeds) == 1:
        for seed in seeds:
            yield run_seed(scenario, seed, progress)
    else:
        # Fresh interpreters: nothing of this process (threads, random state) may leak into a run.
        with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
            for future in as_completed([pool.submit(run_seed, scenario, seed) for seed in seeds]):
                yield future.result()
