"""Build the shipped sample from its hand-written YAML: `python -m scripts.build_sample`.

Writes `wildreward_ray/sample/conversations.parquet` in WildChat's schema, and `expected.jsonl` with the level that a careful
reader gives every interaction. The pipeline never reads the second file: it is there to tell how often a judge agrees.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from wildreward_ray.feedback.conversation import Conversation, Message, interaction_id, normalise

SOURCES = Path(__file__).parent / "sample"
TARGET = Path(__file__).parent.parent / "wildreward_ray" / "sample"
ROLES = ("user", "assistant", "system")
START = datetime(2023, 4, 10, 8, 0, tzinfo=UTC)
COUNTRIES = ("United States", "United Kingdom", "India", "Germany", "Canada", "Australia")

MESSAGE = pa.struct(
    [
        ("content", pa.string()),
        ("country", pa.string()),
        ("hashed_ip", pa.string()),
        ("language", pa.string()),
        ("redacted", pa.bool_()),
        ("role", pa.string()),
        ("state", pa.string()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("toxic", pa.bool_()),
        ("turn_identifier", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("conversation_hash", pa.string()),
        ("model", pa.string()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("conversation", pa.list_(MESSAGE)),
        ("turn", pa.int64()),
        ("language", pa.string()),
        ("toxic", pa.bool_()),
        ("redacted", pa.bool_()),
        ("state", pa.string()),
        ("country", pa.string()),
        ("hashed_ip", pa.string()),
    ]
)


def main() -> None:
    """Read all sources, write both files, print what is in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=TARGET, help="directory to write to")
    target = parser.parse_args().target
    sources = [c for file in sorted(SOURCES.glob("*.yaml")) for c in yaml.safe_load(file.read_text(encoding="utf-8"))]
    rows = [wildchat_row(source, number) for number, source in enumerate(sources)]
    expected = [e for source, row in zip(sources, rows, strict=True) for e in expectations(source, row)]
    target.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, target / "conversations.parquet", compression="zstd", row_group_size=64)
    lines = "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in expected)
    (target / "expected.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(rows)} conversations, {len({r['hashed_ip'] for r in rows})} users, {len(expected)} interactions")


def wildchat_row(source: dict[str, Any], number: int) -> dict[str, Any]:
    """One conversation as a row of WildChat's schema; times and places are made up, from the running number."""
    user = _digest("user", source["user"])
    begin = START + timedelta(hours=7 * number)
    country = "China" if source["language"] == "Chinese" else COUNTRIES[int(user[:4], 16) % len(COUNTRIES)]
    place = {"country": country, "state": None, "hashed_ip": user}
    messages = []
    for i, message in enumerate(source["messages"]):
        role = _role(message)
        messages.append(
            {
                "content": message[role],
                "role": role,
                "language": source["language"],
                "redacted": bool(message.get("redacted")),
                "toxic": bool(message.get("toxic")),
                "timestamp": begin + timedelta(minutes=i),
                "turn_identifier": 100_000 + 100 * number + i,
                **(place if role == "user" else {}),
            }
        )
    return {
        "conversation_hash": _digest("conversation", source["id"]),
        "model": source["model"],
        "timestamp": begin,
        "conversation": messages,
        "turn": sum(m["role"] == "assistant" for m in messages),
        "language": source["language"],
        "toxic": any(m["toxic"] for m in messages),
        "redacted": any(m["redacted"] for m in messages),
        **place,
    }


def expectations(source: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """What a careful reader expects of every interaction of a conversation.

    Raises:
        ValueError: an interaction without a level, or a level that belongs to no interaction but is not on an empty message.
    """
    found: dict[int, dict[str, Any]] = {}
    replies = -1
    previous = None
    position = -1
    for message in source["messages"]:
        role = _role(message)
        if not message[role].strip():
            continue
        if role != previous:
            position += 1
        if "level" in message and previous == "assistant":
            found[replies] = message
        if role == "assistant":
            replies = position
        previous = role
    conversation = Conversation(
        conversation_id=row["conversation_hash"],
        user_id=row["hashed_ip"],
        language=row["language"],
        model=row["model"],
        timestamp=None,
        messages=[Message(m.role, m.content) for m in normalise(row["conversation"], {})],
    )
    missing = set(conversation.turns()) - found.keys()
    if missing:
        raise ValueError(f"{source['id']}: replies at {sorted(missing)} have no level")
    return [
        {
            "interaction_id": interaction_id(row["conversation_hash"], reply),
            "conversation": source["id"],
            "level": found[reply]["level"],
            "final_level": found[reply].get("refined", found[reply]["level"]),
            "origin": found[reply].get("origin", "explicit"),
            "quality_drop": found[reply].get("quality_drop"),
        }
        for reply in conversation.turns()
    ]


def _role(message: dict[str, Any]) -> str:
    return next(role for role in ROLES if role in message)


def _digest(kind: str, name: str) -> str:
    return hashlib.blake2b(f"wildreward-sample/{kind}/{name}".encode(), digest_size=16).hexdigest()


if __name__ == "__main__":
    main()
