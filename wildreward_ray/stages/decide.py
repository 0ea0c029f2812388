"""What one row alone can't tell: repeated interactions, near-duplicate prompts, a prompt on both sides, a user's share.

DuckDB does the grouping, on one node and out of core: it spills to disk beyond its memory limit, so memory stays flat as the
corpus grows. It reads a few small columns and writes the rows to drop.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from wildreward_ray.cluster.storage import Location, upload_file
from wildreward_ray.core.config.extract import QualitySection
from wildreward_ray.stages.judged import scan

if TYPE_CHECKING:
    import duckdb

_MEMORY = "1GB"
_COLUMNS = ["part", "row", "interaction_id", "user_id", "split", "prompt_key", "bands"]

# `rank` orders rows that compete by a hash of their id, so that the same one stays as the corpus grows; a row of the test side
# comes first, so that what was once held out is never taken over by a near-duplicate in train.
_ROWS = """
CREATE TABLE interactions AS
SELECT part, row, user_id, prompt_key, bands, split,
       split IS NOT NULL AS kept,
       (CASE WHEN split = 'test' THEN 0 ELSE 1 END, md5_number_lower(interaction_id), part, row) AS rank,
       row_number() OVER (PARTITION BY interaction_id ORDER BY part, row) AS copy
FROM refined
"""
_REPEATED = "INSERT INTO drops SELECT part, row, 'repeated' FROM interactions WHERE copy > 1"
_BANDS = """
CREATE TABLE banded AS
SELECT part, row, split, prompt_key, rank, unnest(bands) AS band FROM interactions WHERE kept AND copy = 1
"""
_DUPLICATES = """
INSERT INTO drops
SELECT part, row, CASE WHEN bool_or(same) THEN 'duplicate_prompt' ELSE 'near_duplicate_prompt' END
FROM (
    SELECT part, row, prompt_key = first_value(prompt_key) OVER w AS same, row_number() OVER w AS place
    FROM banded WINDOW w AS (PARTITION BY band ORDER BY rank)
)
WHERE place > 1 GROUP BY part, row
"""
_LEAKS = """
INSERT INTO drops
SELECT DISTINCT part, row, 'prompt_in_test' FROM banded
WHERE split = 'train' AND band IN (SELECT band FROM banded WHERE split = 'test')
"""
_HEAVY = """
INSERT INTO drops
SELECT part, row, 'over_user_cap' FROM (
    SELECT part, row, row_number() OVER (PARTITION BY user_id ORDER BY rank) AS place
    FROM interactions ANTI JOIN drops USING (part, row)
    WHERE kept AND user_id IS NOT NULL
)
WHERE place > ?
"""


def decide(refined: Location, target: Location, section: QualitySection) -> None:
    """Write the rows to drop to the Parquet file `target`, as (part, row, reason), sorted.

    Args:
        refined: a directory of `REFINED` parts.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="wildreward-") as folder:
        base = duckdb.connect(str(Path(folder) / "corpus.duckdb"))
        result = Path(folder) / "drops.parquet"
        try:
            base.execute(f"SET memory_limit = '{_MEMORY}'")
            base.execute(f"SET temp_directory = '{folder}'")
            base.execute("SET preserve_insertion_order = false")
            base.execute("CREATE TABLE drops (part VARCHAR, row INTEGER, reason VARCHAR)")
            _load(base, refined)
            base.execute(_REPEATED)
            if section.duplicates != "keep":
                base.execute(_BANDS)
                base.execute(_DUPLICATES if section.duplicates == "drop" else _LEAKS)
            if section.max_per_user is not None:
                base.execute(_HEAVY, [section.max_per_user])
            base.execute(f"COPY (SELECT * FROM drops ORDER BY part, row) TO '{result}' (FORMAT parquet)")
        finally:
            base.close()
        upload_file(result, target)


def _load(base: duckdb.DuckDBPyConnection, refined: Location) -> None:
    """Stream the small columns of all parts into the table `interactions`."""
    base.execute(
        "CREATE TABLE refined (part VARCHAR, row INTEGER, interaction_id VARCHAR, user_id VARCHAR, split VARCHAR,"
        " prompt_key BIGINT, bands BIGINT[])"
    )
    for batch in scan(refined, _COLUMNS):
        base.register("batch", pa.Table.from_batches([batch]))
        base.execute(f"INSERT INTO refined SELECT {', '.join(_COLUMNS)} FROM batch")
        base.unregister("batch")
    base.execute(_ROWS)
    base.execute("DROP TABLE refined")
