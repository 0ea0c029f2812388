"""Which rows a training step reads, in which micro-batches, and on which worker.

Invariants:

- a plan depends on lengths, sizes, seed, epoch and `parts` only, never on the number of workers at work: scaling a run up
  or down, or resuming it, keeps every step's micro-batches, and with them what dropout draws for them;
- every row appears exactly once an epoch, and every step but the last has exactly `global_batch` rows;
- a micro-batch, padded to its longest row, stays within the token budget unless it is one row.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wildreward_ray.core.errors import UserError

IntArray = NDArray[np.int64]

# Rows sorted by length together. Steps of at least this size are whole random samples, sorted only within; smaller
# steps share a chunk, because a step of few rows can't find rows of one length by itself.
_CHUNK_ROWS = 512


def token_batches(rows: IntArray, lengths: IntArray, token_budget: int) -> Iterator[IntArray]:
    """Cut `rows`, taken in the order of falling length, into batches of at most `token_budget` padded tokens.

    Args:
        rows: [n] row numbers.
        lengths: tokens of every row, indexed by row number.
        token_budget: bound on rows times longest row. A longer single row makes a batch of its own.
    """
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, token_budget // longest)
        yield order[start : start + size]
        start += size


def plan_epoch(
    lengths: NDArray[np.integer], *, global_batch: int, token_budget: int, seed: int, epoch: int, parts: int = 1
) -> list[list[IntArray]]:
    """Plan one epoch.

    Rows are shuffled by (seed, epoch) and cut into chunks of whole steps; rows of a chunk are sorted by length and
    dealt to its steps in order, which limits padding; then the steps are shuffled. The rows that don't fill a step are
    drawn before sorting, so the smaller last step is no sample of the longest rows.

    Args:
        lengths: [N] tokens of every row.
        global_batch: rows of an optimizer step.
        token_budget: padded tokens of a micro-batch.
        parts: the micro-batches of a step are a multiple of this where it has rows enough, so that so many workers get
            equally many; the largest are halved until they are.

    Returns:
        One list a step, holding the row numbers of each of its micro-batches, longest micro-batch first.

    Raises:
        UserError: a batch size or a budget below 1.
    """
    if global_batch < 1:
        raise UserError(f"a batch of {global_batch} rows: at least 1 is needed", flag="--global-batch")
    if token_budget < 1:
        raise UserError(f"a budget of {token_budget} tokens: at least 1 is needed", flag="--token-budget")
    sizes = np.asarray(lengths, dtype=np.int64)
    rng = np.random.default_rng([seed, epoch])
    rows = rng.permutation(len(sizes)).astype(np.int64)
    whole = len(rows) - len(rows) % global_batch
    chunk_rows = max(1, _CHUNK_ROWS // global_batch) * global_batch
    steps: list[IntArray] = []
    for start in range(0, whole, chunk_rows):
        chunk = rows[start : min(start + chunk_rows, whole)]
        chunk = chunk[np.argsort(sizes[chunk], kind="stable")]
        steps.extend(chunk[i : i + global_batch] for i in range(0, len(chunk), global_batch))
    steps = [steps[i] for i in rng.permutation(len(steps))]
    if whole < len(rows):
        steps.append(rows[whole:])
    return [_multiple_of(parts, list(token_batches(step, sizes, token_budget)), sizes) for step in steps]


def deal(
    micro_batches: Sequence[IntArray], lengths: NDArray[np.integer], rank: int, world: int
) -> list[tuple[int, IntArray] | None]:
    """The micro-batches of one worker: the largest first, each goes to the worker with the fewest padded tokens so far.

    All workers get equally many entries, so that they run equally many forward and backward passes: sharded models exchange
    weights in each, and a worker that ran fewer would leave the others waiting. Where the number doesn't divide, a worker
    gets None for a pass that counts nothing.

    Args:
        micro_batches: row numbers of every micro-batch.
        lengths: [N] tokens of every row.
        rank: this worker, from 0.
        world: number of workers.

    Returns:
        (place among `micro_batches`, row numbers) for worker `rank`, at the end None. Over all workers they hold every
        micro-batch exactly once.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} workers")
    sizes = [_padded(batch, lengths) for batch in micro_batches]
    most = -(-len(sizes) // world)
    loads, dealt = [0] * world, [0] * world
    mine: list[tuple[int, IntArray] | None] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        worker = min((w for w in range(world) if dealt[w] < most), key=lambda w: (loads[w], w))
        loads[worker] += sizes[index]
        dealt[worker] += 1
        if worker == rank:
            mine.append((index, micro_batches[index]))
    return mine + [None] * (most - len(mine))


def _multiple_of(parts: int, batches: list[IntArray], lengths: NDArray[np.integer]) -> list[IntArray]:
    """Micro-batches, the largest halved until their number is a multiple of `parts` or all hold one row."""
    wanted = -(-len(batches) // parts) * parts
    heap = [(-_padded(batch, lengths), i, batch) for i, batch in enumerate(batches)]
    heapq.heapify(heap)
    lone: list[tuple[int, int, IntArray]] = []
    # The counter breaks ties, so that equal batches keep their order.
    counter = len(heap)
    while heap and len(heap) + len(lone) < wanted:
        entry = heapq.heappop(heap)
        batch = entry[2]
        if len(batch) == 1:
            lone.append(entry)
            continue
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            heapq.heappush(heap, (-_padded(part, lengths), counter, part))
            counter += 1
    return [batch for _, _, batch in sorted(heap + lone, key=lambda entry: entry[:2])]


def _padded(batch: IntArray, lengths: NDArray[np.integer]) -> int:
    """Tokens that a micro-batch computes."""
    return len(batch) * int(lengths[batch].max())


def padding_waste(plan: Sequence[Sequence[IntArray]], lengths: NDArray[np.integer]) -> float:
    """Share of padding among all tokens that a plan computes, in [0, 1)."""
    batches = [batch for step in plan for batch in step]
    padded = sum(_padded(batch, lengths) for batch in batches)
    real = sum(int(lengths[batch].sum()) for batch in batches)
    return 1.0 - real / padded if padded else 0.0
