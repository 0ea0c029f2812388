"""Arrow schemas of the tables that stages exchange."""

from __future__ import annotations

import pyarrow as pa

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

# One row a conversation, so that a conversation's history is stored once and hindsight needs no shuffle. `kind` tells rows
# apart: `conversation`, `quarantine` (reason and detail say why), `summary` and `judge` (counts of a chunk, of judging it).
CONVERSATIONS = pa.schema(
    [
        ("kind", pa.string()),
        ("conversation_id", pa.string()),
        ("user_id", pa.string()),
        ("language", pa.string()),
        ("language_group", pa.string()),
        ("model", pa.string()),
        ("timestamp", pa.string()),
        ("toxic", pa.bool_()),
        ("redacted", pa.bool_()),
        ("source", pa.string()),
        ("position", pa.int64()),
        ("messages", MESSAGES),
        ("turns", pa.list_(pa.int32())),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("counts", pa.string()),
    ]
)

# One row a chunk: the unit of work that is judged, written under its name and, after a kill, done again or passed over.
# `table` is an Arrow IPC stream, so that no batching in between can take a chunk apart.
CHUNKS = pa.schema([("part", pa.string()), ("table", pa.large_binary())])

JUDGED = pa.schema(
    [
        *CONVERSATIONS,
        # Null for turns without a verdict; `failures` says why.
        pa.field("logprobs", pa.list_(pa.list_(pa.float64()))),
        pa.field("failures", pa.list_(pa.string())),
        pa.field("masked", pa.list_(pa.bool_())),
        # Null for turns that weren't asked; turns that aren't suspect were asked to learn the verdicts' prior.
        pa.field("refusal_logprobs", pa.list_(pa.list_(pa.float64()))),
        pa.field("refusal_suspect", pa.list_(pa.bool_())),
    ]
)

# The second judge's verdicts on some turns, by the positions of the conversation in its part and of the turn in it.
SECOND = pa.schema(
    [
        ("row", pa.int32()),
        ("turn", pa.int32()),
        ("audit", pa.bool_()),
        ("logprobs", pa.list_(pa.float64())),
        ("failure", pa.string()),
        ("language_group", pa.string()),
        ("counts", pa.string()),
    ]
)

# One row an interaction. `drop_reason` is null for rows that go to the dataset; `label` is the training label.
FEEDBACK = pa.schema(
    [
        ("interaction_id", pa.string()),
        ("conversation_id", pa.string()),
        ("turn", pa.int32()),
        ("user_id", pa.string()),
        ("language", pa.string()),
        ("model", pa.string()),
        ("timestamp", pa.string()),
        ("toxic", pa.bool_()),
        ("redacted", pa.bool_()),
        ("source", pa.string()),
        ("history", MESSAGES),
        ("history_length", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("feedback", pa.string()),
        ("judge_level", pa.int8()),
        ("judge_logprobs", pa.list_(pa.float32())),
        ("judge_probs", pa.list_(pa.float32())),
        ("judged_by", pa.string()),
        ("masked", pa.bool_()),
        ("pii", pa.list_(pa.string())),
        ("level", pa.int8()),
        ("level_probs", pa.list_(pa.float32())),
        ("entropy", pa.float32()),
        ("origin", pa.string()),
        ("evidence_id", pa.string()),
        ("similarity", pa.float32()),
        ("refusal_verdict", pa.string()),
        ("topic_switch", pa.bool_()),
        ("label", pa.int8()),
        ("drop_reason", pa.string()),
        ("split", pa.string()),
    ]
)

# Rows of FEEDBACK before what needs the whole corpus is decided: `bands` and `prompt_key` tell near and exact duplicates,
# `part` and `row` where a row stands.
REFINED = pa.schema(
    [
        *FEEDBACK,
        pa.field("bands", pa.list_(pa.int64())),
        pa.field("prompt_key", pa.int64()),
        pa.field("part", pa.string()),
        pa.field("row", pa.int32()),
    ]
)

# Rows of REFINED that the whole corpus decided against.
DROPS = pa.schema([("part", pa.string()), ("row", pa.int32()), ("reason", pa.string())])

# What training reads: the columns of FEEDBACK that it needs, with the judge's probabilities folded into K labels.
DATASET = pa.schema(
    [
        ("interaction_id", pa.string()),
        ("history", MESSAGES),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("label", pa.int8()),
        ("label_probs", pa.list_(pa.float32())),
        ("origin", pa.string()),
        ("level", pa.int8()),
        ("language", pa.string()),
        ("user_id", pa.string()),
        ("conversation_id", pa.string()),
        ("model", pa.string()),
    ]
)

QUARANTINE = pa.schema(
    [
        ("source", pa.string()),
        ("position", pa.int64()),
        ("interaction_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
