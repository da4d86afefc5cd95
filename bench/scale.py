"""What grows how: from ten nodes to five thousand, from a thousand queued jobs to a million.

    python -m bench.scale [--parts plan,view,core,storm,rest,queue,remotes] [--sizes 10,100,1000]
                          [--json FILE] [--draw FOLDER]

Membership runs in one process, on a network and a clock in memory: 5,000 nodes take ten minutes
and more, and 8 GiB. With --json what was measured is added to what the file has of other parts and
sizes; with --draw the pictures and tables of docs/scale.md are made from all of it, without any
measuring where --parts is "none". Times of membership and placement are those of a processor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.curves import draw
from bench.facts import machine, table
from bench.scale_gossip import Row, alone, rest, storm
from bench.scale_state import guests, looking, placing, queued

SIZES = (10, 30, 100, 300, 1000)
QUEUES = (1_000, 10_000, 100_000, 1_000_000)
GUESTS = (50, 100, 200)
WANTED_A_SECOND = 10_000

Found = dict[str, list[Row]]

TABLES: Mapping[str, Mapping[str, str]] = {
    "plan": {
        "nodes": "nodes", "10,000 jobs at once": "at_once_a_second",
        "200 a round, all idle": "round_a_second", "200 a round, few idle": "busy_a_second",
        "each job looks at all": "slow_a_second", "a round, ms": "round_ms",
    },
    "view": {"nodes": "nodes", "attempts held": "held", "the view, ms": "view_ms"},
    "storm": {
        "nodes": "nodes", "seeds": "seeds", "half know all, s": "half_s", "all, s": "all_s",
        "bytes a node": "bytes", "datagrams a node": "datagrams", "syncs a node": "syncs",
        "seed, worst second": "seed_peak_bytes_s", "others, worst second": "other_peak_bytes_s",
    },
    "rest": {
        "nodes": "nodes", "datagrams/s": "idle_datagrams_s", "bytes/s": "idle_bytes_s",
        "tags: half, s": "update_half_s", "all, s": "update_all_s",
        "killed: first, s": "kill_first_s", "all, s ": "kill_all_s",
        "unplugged: first, s": "unplug_first_s", "all, s  ": "unplug_all_s",
        "worst": "unplug_all_s_max", "bytes a node": "unplug_bytes",
    },
    "core": {
        "nodes": "nodes", "a sync, bytes": "sync_bytes", "each, s": "sync_every_s",
        "to ask, ms": "ask_ms", "to answer one's like": "answer_same_ms",
        "to tell a newcomer": "answer_newcomer_ms", "all is new": "merge_all_new_ms",
        "its longest part": "longest_step_ms", "memory, bytes": "memory_bytes",
    },
    "queue": {
        "queued jobs": "jobs", "resident, bytes": "rss_bytes", "state.db, bytes": "state_bytes",
        "restart, s": "restart_s", "after a kill, s": "restart_killed_s",
    },
    "remotes": {
        "remotes": "remotes", "alone": "alone_cpu", "sessions": "sessions_cpu",
        "and leases": "leases_cpu", "a session, ms/s": "session_ms_s",
        "a lease, ms/s": "lease_ms_s", "bytes a node": "memory_bytes_each",
    },
}  # fmt: skip
"""As docs/scale.md shows them: heading, and what is under it."""


def measured(part: str, size: int) -> list[Row]:
    if part == "storm":
        return [storm(size, seeds) for seeds in (1, 3)]
    one: dict[str, Callable[[int], Row]] = {
        "plan": placing, "view": looking, "core": alone, "rest": rest, "queue": queued,
        "remotes": guests,
    }  # fmt: skip
    return [one[part](size)]


DEFAULTS: Mapping[str, Sequence[int]] = {
    "plan": SIZES, "view": SIZES, "core": SIZES, "storm": SIZES, "rest": SIZES, "queue": QUEUES,
    "remotes": GUESTS,
}  # fmt: skip
KEYS = {"queue": ("jobs",), "remotes": ("remotes",), "storm": ("nodes", "seeds")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(DEFAULTS))
    parser.add_argument("--sizes", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--draw", type=Path)
    given = parser.parse_args()
    found: Found = {}
    if given.json is not None and given.json.exists():
        found = json.loads(given.json.read_text())
    print(machine())
    parts = [] if given.parts == "none" else given.parts.split(",")
    for part in parts:
        rows: list[Row] = []
        for size in map(int, given.sizes.split(",")) if given.sizes else DEFAULTS[part]:
            for row in measured(part, size):
                rows.append(row)
                print(part, json.dumps({k: rounded(v) for k, v in row.items()}), flush=True)
                found[part] = merged(found.get(part, []), row, KEYS.get(part, ("nodes",)))
                if given.json is not None:
                    given.json.write_text(as_json(found))
        print(f"\n{part}\n{shown(rows)}\n", flush=True)
    if given.draw is not None:
        given.draw.mkdir(exist_ok=True)
        pictures(found, given.draw)
        for part, columns in TABLES.items():
            if part in found:
                print(f"\n{markdown(found[part], columns)}")


def merged(rows: Sequence[Row], new: Row, keys: Sequence[str]) -> list[Row]:
    kept = [row for row in rows if any(row[key] != new[key] for key in keys)]
    return sorted([*kept, new], key=lambda row: [row[key] for key in keys])


def rounded(value: float) -> float:
    return value if value == int(value) and abs(value) < 1e15 else float(f"{value:.4g}")


def shortly(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def as_json(found: Found) -> str:
    lines = [
        f"  {json.dumps(part)}: [\n"
        + ",\n".join(f"    {json.dumps({k: rounded(v) for k, v in row.items()})}" for row in rows)
        + "\n  ]"
        for part, rows in sorted(found.items())
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def shown(rows: Sequence[Row]) -> str:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    return table(heads, [[shortly(row[h]) if h in row else "" for h in heads] for row in rows])


def markdown(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    lines = ["| " + " | ".join(name.strip() for name in columns) + " |"]
    lines.append("|" + " --- |" * len(columns))
    for row in rows:
        cells = (shortly(row[key]) if key in row else "" for key in columns.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pictures(found: Found, folder: Path) -> None:
    def of(part: str, up: str, across: str = "nodes", **only: float) -> list[tuple[float, float]]:
        return [
            (row[across], row[up]) for row in found.get(part, [])
            if up in row and all(row[key] == value for key, value in only.items())
        ]  # fmt: skip

    if "plan" in found:
        draw(
            folder / "placement.svg", "Placements a second, 20 shapes", "nodes", "a second",
            {
                "10,000 at once": of("plan", "at_once_a_second"),
                "200 a round, idle": of("plan", "round_a_second"),
                "200 a round, busy": of("plan", "busy_a_second"),
                "each looks at all": of("plan", "slow_a_second"),
            },
            aim=("wanted", WANTED_A_SECOND),
        )  # fmt: skip
        draw(
            folder / "round.svg", "One round of placement", "nodes", "ms",
            {"the plan": of("plan", "round_ms"), "the view of the state": of("view", "view_ms")},
        )  # fmt: skip
    if "storm" in found:
        draw(
            folder / "storm.svg", "All start at once", "nodes", "seconds until known",
            {
                "half know all, 1 seed": of("storm", "half_s", seeds=1),
                "all know all, 1 seed": of("storm", "all_s", seeds=1),
                "all know all, 3 seeds": of("storm", "all_s", seeds=3),
            },
        )  # fmt: skip
        draw(
            folder / "storm-bytes.svg", "All start at once: bytes", "nodes", "bytes",
            {
                "a node, in all": of("storm", "bytes", seeds=1),
                "a node, worst second": of("storm", "other_peak_bytes_s", seeds=1),
                "the seed, worst second": of("storm", "seed_peak_bytes_s", seeds=1),
                "one of 3 seeds": of("storm", "seed_peak_bytes_s", seeds=3),
            },
        )  # fmt: skip
    if "rest" in found:
        draw(
            folder / "detection.svg", "A death, and a change of tags", "nodes",
            "seconds until known",
            {
                "unplugged, all": of("rest", "unplug_all_s"),
                "unplugged, the first": of("rest", "unplug_first_s"),
                "killed, all": of("rest", "kill_all_s"),
                "killed, the first": of("rest", "kill_first_s"),
                "tags, all": of("rest", "update_all_s"),
                "tags, half": of("rest", "update_half_s"),
            },
        )  # fmt: skip
        syncs = [
            (row["nodes"], 2 * row["sync_bytes"] / row["sync_every_s"])
            for row in found.get("core", [])
        ]
        draw(
            folder / "idle.svg", "What membership costs a node at rest", "nodes", "a second",
            {
                "bytes, datagrams": of("rest", "idle_bytes_s"),
                "bytes, syncs": syncs,
                "datagrams": of("rest", "idle_datagrams_s"),
            },
        )  # fmt: skip
    if "core" in found:
        draw(
            folder / "sync.svg", "A sync", "nodes", "ms",
            {
                "all is new, in all": of("core", "merge_all_new_ms"),
                "its longest part": of("core", "longest_step_ms"),
                "to ask": of("core", "ask_ms"),
                "to answer one's like": of("core", "answer_same_ms"),
                "to tell a newcomer": of("core", "answer_newcomer_ms"),
            },
        )  # fmt: skip
        draw(
            folder / "memory.svg", "Memory of membership on one node", "nodes", "bytes",
            {"one node": of("core", "memory_bytes")},
        )  # fmt: skip
    if "queue" in found:
        draw(
            folder / "queue.svg", "A long queue: bytes", "queued jobs", "bytes",
            {
                "state.db": of("queue", "state_bytes", "jobs"),
                "resident memory": of("queue", "rss_bytes", "jobs"),
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
