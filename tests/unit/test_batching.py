"""Epoch plans: no row lost or repeated, nothing over budget, and the same plan for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.batching import IntArray, padding_waste, plan_epoch, shard_step

Plan = list[list[IntArray]]


def lengths(n: int, seed: int = 0) -> IntArray:
    """Log-normal, as chat inputs are: most short, a few near the limit."""
    values: IntArray = np.clip(np.random.default_rng(seed).lognormal(5.5, 1.0, n), 1, 4096).astype(np.int64)
    return values


def plan(n: int, *, batch: int = 32, budget: int = 8192, seed: int = 0, epoch: int = 0) -> Plan:
    return plan_epoch(lengths(n), global_batch=batch, token_budget=budget, seed=seed, epoch=epoch)


def rows(step: list[IntArray]) -> list[int]:
    return sorted(int(row) for batch in step for row in batch)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 1000, 1024])
@pytest.mark.parametrize("batch", [1, 7, 32, 5000])
def test_every_row_comes_once_and_every_step_but_the_last_is_full(n: int, batch: int) -> None:
    steps = [rows(step) for step in plan(n, batch=batch)]
    assert sorted(row for step in steps for row in step) == list(range(n))
    assert all(len(step) == batch for step in steps[:-1])
    assert len(steps) == -(-n // batch)


@pytest.mark.parametrize("budget", [1, 500, 8192])
def test_padded_tokens_stay_within_budget_except_for_a_lone_row(budget: int) -> None:
    sizes = lengths(1000)
    for step in plan(1000, budget=budget):
        for batch in step:
            assert len(batch) == 1 or len(batch) * sizes[batch].max() <= budget


def test_a_plan_is_fixed_by_seed_and_epoch() -> None:
    def flat(p: Plan) -> list[list[list[int]]]:
        return [[batch.tolist() for batch in step] for step in p]

    assert flat(plan(500)) == flat(plan(500))
    assert flat(plan(500)) != flat(plan(500, epoch=1))
    assert flat(plan(500)) != flat(plan(500, seed=1))
    assert flat(plan(500, seed=0, epoch=1)) != flat(plan(500, seed=1, epoch=0))


def test_little_is_padded_and_steps_do_not_run_from_short_to_long() -> None:
    sizes = lengths(4096)
    for batch, most in ((8, 0.15), (32, 0.15), (512, 0.15)):
        steps = plan(4096, batch=batch)
        assert padding_waste(steps, sizes) < most
    means = [float(lengths(512)[rows(step)].mean()) for step in plan(512, batch=8)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.3


def test_large_steps_are_fair_samples_of_all_lengths() -> None:
    sizes = lengths(8192)
    means = [float(sizes[rows(step)].mean()) for step in plan(8192, batch=512)]
    assert max(means) < 1.3 * min(means)


def test_the_smaller_last_step_is_not_made_of_the_longest_rows() -> None:
    sizes = np.arange(1, 101)
    lasts = [rows(plan_epoch(sizes, global_batch=64, token_budget=1000, seed=seed, epoch=0)[-1]) for seed in range(50)]
    assert {len(last) for last in lasts} == {36}
    assert 40 < np.mean([sizes[last].mean() for last in lasts]) < 61


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_workers_share_a_step_without_loss_whatever_their_number(world: int) -> None:
    sizes = lengths(1000)
    for step in plan(1000, batch=64):
        shards = [shard_step(step, sizes, rank, world) for rank in range(world)]
        assert sorted(row for shard in shards for row in rows(shard)) == rows(step)
        assert len({len(shard) for shard in shards}) == 1 or len(rows(step)) < world
        assert all(len(batch) * sizes[batch].max() <= 8192 for shard in shards for batch in shard)


def test_workers_get_about_equal_padded_tokens() -> None:
    sizes = lengths(4096)
    for step in plan(4096, batch=512):
        loads = [
            sum(len(batch) * int(sizes[batch].max()) for batch in shard_step(step, sizes, rank, 4)) for rank in range(4)
        ]
        assert max(loads) < 1.25 * min(loads)


def test_fewer_rows_than_workers_leave_some_idle_but_lose_nothing() -> None:
    sizes = np.array([5, 9])
    shards = [shard_step([np.array([1, 0])], sizes, rank, 4) for rank in range(4)]
    assert sorted(row for shard in shards for row in rows(shard)) == [0, 1]


def test_padding_waste_is_the_share_of_padding() -> None:
    assert padding_waste([[np.array([0, 1])], [np.array([2])]], np.array([10, 5, 5])) == pytest.approx(0.2)
    assert padding_waste([], np.array([1])) == 0.0


@pytest.mark.parametrize(("batch", "budget"), [(0, 10), (1, 0)])
def test_sizes_below_one_are_the_users_error(batch: int, budget: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        plan(10, batch=batch, budget=budget)
