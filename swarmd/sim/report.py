"""The report of a simulated scenario: one document, and the same in lines for a person.

Nothing in it depends on when or where it was made: the same scenario makes the same report, to the
byte. All of it says that it is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from swarmd.domain.builds import BLOCKED
from swarmd.domain.jobs import JobKind, JobStatus
from swarmd.sim.building import Yard
from swarmd.sim.estate import Estate
from swarmd.sim.packages import DELEGATED, NEEDED, RECEIVED, Package
from swarmd.sim.story import NAMES_SHOWN, Moment, Story
from swarmd.sim.topology import counted, listed
from swarmd.sim.waiting import Waiting
from swarmd.sim.work import Work

NOTE = "simulated: one run of chance, of swarmd's own code on a simulated network, disks and clock"
LINES_MAX = 100
"""Of the timeline, for a person; the document has more."""
LABEL = "simulated"
MARKED = frozenset({"gone", "back", "leader", "writes"})
RETURNS_MAX = 500
"""Packages that went back, in the document; a person is shown fewer."""
RETURNS_SHOWN = 10
"""Moments that are shown first where there are too many."""


@dataclass
class Seen:
    """What a run left behind."""

    story: Story
    work: Work
    estate: Estate
    yard: Yard | None = None
    began: bool = False
    """All had met."""
    met_s: float = 0.0
    lasted_s: float = 0.0
    summary: dict[str, Any] | None = None
    """Made while the estate is there."""


def summarize(seen: Seen) -> dict[str, Any]:
    """Of the end, as it stands now."""
    story, work, estate = seen.story, seen.work, seen.estate
    stands = story.tally.stands
    there = estate.there()
    voters = () if story.view is None else story.view.voters
    learners = () if story.view is None else story.view.learners
    voting, holding = story.named(voters), story.named((*voters, *learners))
    up = [name for name in voting if name in estate.up()]
    needed = len(voting) // 2 + 1
    leading = story.leading
    runs = [ran.how for ran in story.runs()]
    completed = [job.completions for job in story.tally.jobs.values()]
    return {
        "jobs": {
            "submitted": len(story.tally.jobs) - len(story.tally.packages.packages),
            "completed": stands[JobStatus.COMPLETED],
            "failed": stands[JobStatus.FAILED],
            "cancelled": stands[JobStatus.CANCELLED],
            "running": stands[JobStatus.ASSIGNED] + stands[JobStatus.RUNNING],
            "waiting": stands[JobStatus.PENDING],
            "run_again": story.tally.run_again,
            "completed_twice": sum(count > 1 for count in completed),
            "run_twice_at_once": story.at_once(),
            "given_up_by_clients": work.given_up + work.turned_away,
            "refused": dict(sorted(work.refused.items())),
        },
        "queue": {
            "longest": story.queue_longest[0],
            "longest_at_s": story.queue_longest[1],
            "at_the_end": stands[JobStatus.PENDING],
        },
        "runs": {
            "begun": runs.count("began"),
            "to_their_end": runs.count("exit"),
            "redone_s": _round(story.redone_s()),
        },
        "faults_struck": story.struck,
        "leader": {
            "at_the_end": None if leading.none_since is not None else leading.name,
            "changes": leading.changes,
            "longest_without_s": _round(story.without_leader_s()),
        },
        "writes": {
            "attempts": work.attempts,
            "not_taken": dict(sorted(work.refusals.items())),
            "longest_without_s": _round(work.unwritable_s()),
            "taken_at_the_end": work.taken(),
        },
        "quorum": {
            "kept": len(up) >= needed and leading.none_since is None,
            "voters": voting,
            "voters_there": up,
            "needed": needed,
            "replicas": holding,
            "replicas_there": [name for name in holding if name in estate.up()],
        },
        "nodes": {
            "there": len(there),
            "gone": estate.in_order(estate.hosts.keys() - {*there}),
        },
        "packages": None if seen.yard is None else _packages(seen, seen.yard),
        **told_waiting(None, stands[JobStatus.PENDING]),
    }


def _packages(seen: Seen, yard: Yard) -> dict[str, Any]:
    book, began = seen.story.tally.packages, seen.story.began or 0.0
    stands = book.stands
    built = [package.built_at for package in book.packages.values() if package.built_at is not None]
    built = [at for at in built if at >= began]
    returned = [package for package in book.packages.values() if package.returns]
    there = yard.there()
    return {
        "queued": len(book.packages),
        "brought_otherwise": yard.not_brought,
        "received": stands[RECEIVED],
        "delegated": stands[DELEGATED],
        "needed": stands[NEEDED],
        "blocked": stands[BLOCKED],
        "built": len(built),
        "last_built_at_s": _round(max(built) - began) if built else None,
        "failed_builds": book.failed_builds,
        "went_back": [_went_back(each, began) for each in returned[:RETURNS_MAX]],
        "went_back_left_out": max(0, len(returned) - RETURNS_MAX),
        "sessions": [
            {
                "id": group.id,
                "name": group.labels.get("name", group.id),
                **book.session(group.id),
            }
            for group in yard.known.sessions
        ],
        "builders_there": there,
        "builders_gone": [name for name in yard.builders if name not in there],
    }


def _went_back(package: Package, began: float) -> dict[str, Any]:
    """Whenever it did, and what became of it."""
    return {
        "package": package.name,
        "times": [
            {
                "at_s": _round(each.at - began), "builder": each.holder, "begun": each.begun,
                "reason": each.reason,
            }
            for each in package.returns
        ],
        "stands": package.stands,
        "builder": package.holder if package.stands in (DELEGATED, RECEIVED) else None,
        "built_at_s": None if package.built_at is None else _round(package.built_at - began),
    }  # fmt: skip


def told_waiting(waiting: list[Waiting] | None, more: int) -> dict[str, Any]:
    """Why jobs wait, as far as it was found out."""
    told = None if waiting is None else [asdict(each) for each in waiting]
    return {"waiting": told, "waiting_not_looked_at": more}


def document(
    scenario: dict[str, Any], seen: Seen | None, ended: str, broken: str | None
) -> dict[str, Any]:
    """`ended` is as planned, interrupted or broken."""
    found: dict[str, Any] = {
        "simulated": True, "note": NOTE, "ended": ended, "broken": broken, "scenario": scenario,
    }  # fmt: skip
    if seen is None or not seen.began:
        return {
            **found, "met_s": None, "lasted_s": 0.0, "timeline": [], "timeline_left_out": 0,
            "samples": [], "summary": None,
        }  # fmt: skip
    moments = in_order(seen.story.moments)
    return {
        **found,
        "met_s": _round(seen.met_s),
        "lasted_s": _round(seen.lasted_s),
        "timeline": [asdict(moment) for moment in moments],
        "timeline_left_out": seen.story.untold,
        "samples": [asdict(sample) for sample in seen.story.samples],
        "summary": seen.summary,
    }


def in_order(moments: Sequence[Moment]) -> list[Moment]:
    return sorted(moments, key=lambda moment: moment.at_s)


def _round(seconds: float) -> float:
    return round(seconds, 3)


# For a person


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Each says that it is simulated."""
    for line in _lines(found):
        yield f"{LABEL}  {line}".rstrip()


def _lines(found: dict[str, Any]) -> Iterator[str]:
    scenario, summary = found["scenario"], found["summary"]
    yield f"{scenario['title']}, seed {scenario['seed']}"
    yield from scenario["notes"]
    if summary is None:
        yield "ended before all nodes had met: there is nothing to tell"
        return
    yield from _timeline(found)
    ended = {"as planned": "the end", "interrupted": "interrupted", "broken": "broken off"}
    yield f"{clock(found['lasted_s'])}  {ended[found['ended']]}"
    yield ""
    yield from _summary(summary)


def _timeline(found: dict[str, Any]) -> Iterator[str]:
    moments = found["timeline"]
    shown = moments
    if len(moments) > LINES_MAX:
        marked = [moment for moment in moments if moment["kind"] in MARKED][:LINES_MAX]
        others = [moment for moment in moments if moment["kind"] not in MARKED]
        shown = [*marked, *others[: LINES_MAX - len(marked)]]
        shown.sort(key=lambda moment: float(moment["at_s"]))
    for moment in shown:
        yield f"{clock(moment['at_s'])}  {moment['kind']:6}  {moment['words']}"
    if more := len(moments) - len(shown) + found["timeline_left_out"]:
        yield f"{'':9}  {counted(more, 'more moment')}; --json has up to {len(moments)}"


def _summary(summary: dict[str, Any]) -> Iterator[str]:
    jobs, runs, leader = summary["jobs"], summary["runs"], summary["leader"]
    writes, quorum, nodes = summary["writes"], summary["quorum"], summary["nodes"]
    yield (
        f"jobs     {jobs['submitted']} submitted, {jobs['completed']} completed,"
        f" {jobs['failed']} failed, {jobs['running']} running, {jobs['waiting']} waiting"
    )
    yield (
        f"again    {jobs['run_again']} put back and run again: {runs['redone_s']:.0f} s of work"
        f" redone; run twice at once {jobs['run_twice_at_once']}, completed twice"
        f" {jobs['completed_twice']}"
    )
    if (queue := summary["queue"])["longest"]:
        yield (
            f"queue    {counted(queue['longest'], 'job')} waited at the most, at"
            f" {clock(queue['longest_at_s']).strip()}; {queue['at_the_end']} at the end"
        )
    if given_up := jobs["given_up_by_clients"]:
        yield f"clients  gave up on {counted(given_up, 'job')}, not taken in time"
    for words, count in jobs["refused"].items():
        yield f"refused  {counted(count, 'job')}: {words}"
    yield (
        f"leader   {leader['at_the_end'] or 'none'} at the end; changes: {leader['changes']}; none"
        f" for {leader['longest_without_s']:.1f} s at the longest"
    )
    failed = sum(writes["not_taken"].values())
    yield (
        f"writes   {'taken' if writes['taken_at_the_end'] else 'NOT taken'} at the end, for"
        f" {writes['longest_without_s']:.1f} s none at the longest; {failed} of"
        f" {counted(writes['attempts'], 'attempt')} {'was' if failed == 1 else 'were'} not taken at"
        " once"
    )
    voters, voting, needed = quorum["voters"], len(quorum["voters_there"]), quorum["needed"]
    yield (
        f"quorum   {'kept' if quorum['kept'] else 'LOST'}: {voting} of"
        f" {counted(len(voters), 'voter')} {_are(voting)} there ({listed(voters)}), {needed}"
        f" {_are(needed)} needed; {len(quorum['replicas_there'])} of"
        f" {counted(len(quorum['replicas']), 'replica')}"
    )
    gone = f", gone: {listed(nodes['gone'], NAMES_SHOWN)}" if nodes["gone"] else ""
    yield f"nodes    {nodes['there']} there{gone}"
    if summary["packages"] is not None:
        yield from _of_packages(summary["packages"])
    yield from _waiting(summary)


def _of_packages(packages: dict[str, Any]) -> Iterator[str]:
    last = packages["last_built_at_s"]
    yield (
        f"packages {packages['queued']} to be built: {packages['received']} received,"
        f" {packages['delegated']} with builders, {packages['needed']} needed,"
        f" {packages['blocked']} blocked" + (f"; the last at {clock(last).strip()}" if last else "")
    )
    if otherwise := packages["brought_otherwise"]:
        words = "did not begin as the copy has them: without who failed or had them"
        yield f"{'':9}- {otherwise} {words}"
    builders, gone = packages["builders_there"], packages["builders_gone"]
    words = f", gone: {listed(gone, NAMES_SHOWN)}" if gone else ""
    yield f"builders {len(builders)} there{words}"
    went_back = packages["went_back"]
    for each in went_back[:RETURNS_SHOWN]:
        last_time = each["times"][-1]
        since = f"went back at {clock(last_time['at_s']).strip()}, from {last_time['builder']}"
        if each["built_at_s"] is not None:
            became = f"built by {each['builder']} at {clock(each['built_at_s']).strip()}"
        elif each["builder"] is not None:
            became = f"with {each['builder']}"
        else:
            became = f"{each['stands']} at the end"
        yield f"{'':9}- {each['package']} {since}; {became}"
    if more := len(went_back) - RETURNS_SHOWN + packages["went_back_left_out"]:
        if more > 0:
            yield f"{'':9}- {more} more went back"
    for each in packages["sessions"][:RETURNS_SHOWN]:
        done = "completed" if each["completed"] else f"{counted(each['open'], 'package')} to go"
        yield (
            f"session  {each['name']}: {each['received']} of {each['queued']} received,"
            f" {each['blocked']} blocked; {done}"
        )


def _waiting(summary: dict[str, Any]) -> Iterator[str]:
    if summary["waiting"] is None:
        yield "waiting  no replica is left that could say why jobs wait"
        return
    if summary["waiting"] and not summary["leader"]["at_the_end"]:
        yield "waiting  nobody leads: nothing is placed until somebody does"
    for each in summary["waiting"]:
        package = each["kind"] == JobKind.PACKAGE.value
        jobs = counted(each["count"], "package" if package else "job")
        jobs += "" if package else f" of type {each['type']}"
        can = "be built" if package else "be placed"
        waits = "waits" if each["count"] == 1 else "wait"
        able = waits if each["placeable"] else f"CANNOT {can} any more"
        yield f"waiting  {jobs} {able}, such as {each['example']}: {each['summary']}"
        for reason in each["reasons"]:
            yield f"{'':9}- {reason}"
        if each["gone"]:
            could = "could be built by" if package else "could run on"
            yield f"{'':9}- {could} {listed(each['gone'], NAMES_SHOWN)}, not there"
    if summary["waiting_not_looked_at"]:
        yield f"waiting  {summary['waiting_not_looked_at']} more, not looked at one by one"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def clock(seconds: float) -> str:
    """`   0:31.2`"""
    minutes, rest = divmod(max(0.0, round(seconds, 1)), 60)
    return f"{f'{int(minutes)}:{rest:04.1f}':>9}"
