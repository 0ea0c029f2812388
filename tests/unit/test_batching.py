"""Epoch plans: no row lost or repeated, nothing over budget, and the same plan for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.batching import IntArray, deal, padding_waste, plan_epoch

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


def shards(step: list[IntArray], sizes: IntArray, world: int) -> list[list[tuple[int, IntArray] | None]]:
    return [deal(step, sizes, rank, world) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_workers_share_a_step_without_loss_in_equally_many_passes(world: int) -> None:
    sizes = lengths(1000)
    for step in plan(1000, batch=64):
        dealt = shards(step, sizes, world)
        given = [entry for shard in dealt for entry in shard if entry is not None]
        assert sorted(index for index, _ in given) == list(range(len(step)))
        assert all(batch is step[index] for index, batch in given)
        assert len({len(shard) for shard in dealt}) == 1
        # A pass that counts nothing comes last, where nobody waits for its result.
        assert all(shard.index(None) == len(shard) - shard.count(None) for shard in dealt if None in shard)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_step_is_cut_into_a_multiple_of_the_parts_within_the_budget(parts: int) -> None:
    sizes = lengths(1000)
    whole = plan_epoch(sizes, global_batch=64, token_budget=8192, seed=0, epoch=0)
    cut = plan_epoch(sizes, global_batch=64, token_budget=8192, seed=0, epoch=0, parts=parts)
    assert [rows(step) for step in cut] == [rows(step) for step in whole]
    for step in cut:
        assert len(step) % parts == 0
        assert all(len(batch) == 1 or len(batch) * sizes[batch].max() <= 8192 for batch in step)


def test_workers_get_about_equal_padded_tokens() -> None:
    sizes = lengths(4096)
    for step in plan_epoch(sizes, global_batch=512, token_budget=8192, seed=0, epoch=0, parts=4):
        loads = [
            sum(len(entry[1]) * int(sizes[entry[1]].max()) for entry in shard if entry is not None)
            for shard in shards(step, sizes, 4)
        ]
        assert max(loads) < 1.25 * min(loads)


def test_fewer_rows_than_workers_leave_some_without_rows_but_lose_nothing() -> None:
    (step,) = plan_epoch(np.array([5, 9]), global_batch=4, token_budget=100, seed=0, epoch=0, parts=4)
    given = [entry for shard in shards(step, np.array([5, 9]), 4) for entry in shard]
    assert sorted(int(row) for entry in given if entry is not None for row in entry[1]) == [0, 1]
    assert given.count(None) == 2


def test_padding_waste_is_the_share_of_padding() -> None:
    assert padding_waste([[np.array([0, 1])], [np.array([2])]], np.array([10, 5, 5])) == pytest.approx(0.2)
    assert padding_waste([], np.array([1])) == 0.0


@pytest.mark.parametrize(("batch", "budget"), [(0, 10), (1, 0)])
def test_sizes_below_one_are_the_users_error(batch: int, budget: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        plan(10, batch=batch, budget=budget)
