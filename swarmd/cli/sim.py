"""Simulation from the command line: what becomes of a swarm and its work, in a bottle.

Everything that it says is labelled as simulated. It asks no daemon and touches none.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarmd.cli import options, show
from swarmd.cli.main import EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_USAGE, tell
from swarmd.domain.errors import Invalid

if TYPE_CHECKING:
    from swarmd.sim.faults import Fault
    from swarmd.sim.scenario import Progress, Scenario

NODES_USUAL = 5
MINUTES_USUAL = 2.0
JOB_S_USUAL = 30.0
FAULT = '{"at_s":12,"kind":"freeze","victim":"n2","for_s":4}'
MEMINFO = Path("/proc/meminfo")
SAY_EVERY_S = 1.0
SAY_EVERY_S_IN_A_FILE = 10.0


@click.command("sim")
@click.option(
    "--nodes",
    "count",
    type=int,
    metavar="N",
    help=f"So many equal nodes, n1 to nN; {NODES_USUAL} where nothing is said.",
)
@click.option(
    "--topology",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Nodes, links and load as a TOML file says.",
)
@click.option(
    "--from",
    "copy",
    type=click.Path(path_type=Path),
    metavar="SNAPSHOT",
    help="Nodes, builders, jobs and packages of your own: what `swarmd raft snapshot save` wrote.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=1,
    show_default=True,
    help="The same seed is the same run.",
)
@click.option(
    "--minutes",
    type=float,
    default=MINUTES_USUAL,
    show_default=True,
    help="Of simulated time, once all nodes have met.",
)
@click.option(
    "--kill",
    "kill",
    metavar="NODE,…",
    help="These lose power: names, groups or label=value; builders by name.",
)
@click.option(
    "--at",
    "at_s",
    type=options.DURATION,
    metavar="SECONDS",
    help="When; at half time where nothing is said.",
)
@click.option(
    "--back",
    "back_s",
    type=options.DURATION,
    metavar="SECONDS",
    help="So long after that they have power again; never where nothing is said.",
)
@click.option(
    "--faults",
    default="none",
    show_default=True,
    metavar="light|heavy|FILE|none",
    help="What else befalls: drawn from the seed, or a schedule, a JSON fault a line.",
)
@click.option(
    "--jobs",
    "jobs_a_minute",
    type=float,
    metavar="N",
    help="So many jobs come a minute; 0 for none.",
)
@click.option(
    "--job-seconds",
    "job_s",
    type=options.DURATION,
    default=str(int(JOB_S_USUAL)),
    metavar="SECONDS",
    show_default=True,
    help="How long jobs run of which nothing else is known, on the average.",
)
@options.as_json
def sim(
    count: int | None, topology: Path | None, copy: Path | None, seed: int, minutes: float,
    kill: str | None, at_s: float | None, back_s: float | None, faults: str,
    jobs_a_minute: float | None, job_s: float, as_json: bool,
) -> int:  # fmt: skip
    """What becomes of a swarm, and of its jobs, when machines go: simulated, with swarmd's own
    code, in this one process.

    docs/simulation.md says what it shows and what it cannot.
    """
    try:
        scenario = _scenario(
            count, topology, copy, seed=seed, seconds=60 * minutes, kill=kill, at_s=at_s,
            back_s=back_s, faults=faults, jobs_a_minute=jobs_a_minute, job_s=job_s,
        )  # fmt: skip
    except Invalid as problem:
        tell(f"error: {show.printable(problem.message)}")
        return EXIT_USAGE
    return _run(scenario, as_json)


def _scenario(
    count: int | None, file: Path | None, copy: Path | None, *, seed: int, seconds: float,
    kill: str | None, at_s: float | None, back_s: float | None, faults: str,
    jobs_a_minute: float | None, job_s: float,
) -> Scenario:  # fmt: skip
    """Invalid: the words do not make one."""
    from swarmd.sim import topology as topologies
    from swarmd.sim.estate import DRAWN, check_victims, draw_faults
    from swarmd.sim.exported import read_exported
    from swarmd.sim.faults import decode_schedule
    from swarmd.sim.harm import KINDS
    from swarmd.sim.scenario import Scenario, check_seconds

    if sum(each is not None for each in (count, file, copy)) > 1:
        raise Invalid("--nodes, --topology and --from say each which nodes there are: choose one")
    check_seconds(seconds)
    if not 0.01 <= job_s <= 86_400:
        raise Invalid(f"--job-seconds is between 0.01 and 86400, not {job_s:g}")
    exported = None
    if copy is not None:
        exported = read_exported(copy)
        topology, title = exported.topology, f"the swarm in {copy.name}"
    elif file is not None:
        topology, title = topologies.read_topology(file), f"the swarm of {file.name}"
    else:
        count = NODES_USUAL if count is None else count
        topology = topologies.equal_nodes(count)
        title = "1 node" if count == 1 else f"{count} equal nodes"
    load = topology.load
    if jobs_a_minute is not None:
        load = topologies.load_of(jobs_a_minute, job_s)
    elif not load and exported is None:
        load = (topologies.usual_load(topology.nodes, job_s),)
    names = [node.name for node in topology.nodes]
    schedule: list[Fault] = []
    if faults in DRAWN:
        schedule = draw_faults(faults, seed, names, seconds)
    elif faults != "none":
        schedule = decode_schedule(_schedule_text(faults), KINDS)
        if not schedule:
            raise Invalid(
                f"{faults} has no fault in it: write one a line, as JSON, such as {FAULT}"
            )
        check_victims(schedule, topology)
    if (at_s is not None or back_s is not None) and kill is None:
        raise Invalid("--at and --back are about the nodes of --kill: name them")
    builders = [] if exported is None else exported.builds.names()
    scenario = Scenario(
        topology, f"{title} for {seconds / 60:g} min", seed, seconds, load, exported, job_s,
        () if kill is None else topology.choose(kill.split(","), "--kill: ", builders),
        seconds / 2 if at_s is None else at_s, back_s, faults, tuple(schedule),
    )  # fmt: skip
    scenario.check()
    _check_memory(len(names), seconds)
    return scenario


def _schedule_text(faults: str) -> str:
    from swarmd.sim.topology import read_text

    try:
        return read_text(Path(faults))
    except Invalid as problem:
        raise Invalid(
            f"{problem.message}; --faults is none, light, heavy or a file with a schedule"
        ) from problem


def _check_memory(nodes: int, seconds: float) -> None:
    """Invalid: so many nodes would not fit into what is free here."""
    from swarmd.sim.scenario import estimate
    from swarmd.sim.topology import counted

    _, needed = estimate(nodes, seconds)
    try:
        lines = MEMINFO.read_text().splitlines()
        (free,) = [1024 * int(li.split()[1]) for li in lines if li.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        return  # nobody says how much there is
    if needed > free:
        raise Invalid(
            f"{counted(nodes, 'node')} {'needs' if nodes == 1 else 'need'} about"
            f" {show.size(needed)} of memory, and {show.size(free)} are free here; choose fewer"
        )


def _run(scenario: Scenario, as_json: bool) -> int:
    from swarmd.sim.report import lines
    from swarmd.sim.scenario import Run

    logging.disable()  # so many nodes have much to say, and nobody to say it to
    said = Said(scenario)
    run = Run(scenario, tell=said)
    with _stopped_by_signals(run):
        found = run.live()
    said.over()
    if as_json:
        show.emit_json(found)
    else:
        for line in lines(found):
            click.echo(show.printable(line))
    if found["broken"] is not None:
        tell(
            "error: a rule that holds for every swarm was broken in this simulation:"
            f" {show.printable(found['broken'])}. That is a mistake in swarmd; please report it"
            f" with the command, which shows it again (seed {scenario.seed})"
        )
        return EXIT_REFUSED
    return EXIT_INTERRUPTED if found["ended"] == "interrupted" else 0


@contextmanager
def _stopped_by_signals(run: object) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run; what was seen so far is told."""
    from swarmd.sim.scenario import Run

    assert isinstance(run, Run)
    before = {number: signal.signal(number, run.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Said:
    """What is said to who waits: how long it will take, and how far it is."""

    def __init__(self, scenario: Scenario) -> None:
        from swarmd.sim.scenario import estimate
        from swarmd.sim.topology import counted

        self._in_place = sys.stderr.isatty()
        self._began = self._last = time.monotonic()
        self._lived_at: float | None = None
        count = len(scenario.topology.nodes)
        wall_s, memory_bytes = estimate(count, scenario.seconds)
        tell(
            f"simulated: {counted(count, 'node')} for {scenario.seconds / 60:g} min;"
            f" it takes about {_about(wall_s)} and {show.size(memory_bytes)} here"
        )

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.lived_s and self._lived_at is None:
            self._lived_at = now
        if now - self._last < (SAY_EVERY_S if self._in_place else SAY_EVERY_S_IN_A_FILE):
            return
        self._last = now
        if self._lived_at is None:
            words = f"{progress.met} of {progress.nodes} nodes have met"
        else:
            took_s = now - self._lived_at
            left_s = took_s * (progress.seconds / progress.lived_s - 1)
            words = (
                f"{progress.lived_s:.0f} of {progress.seconds:.0f} s lived in {_about(took_s)},"
                f" about {_about(left_s)} to go"
            )
        end = "\r" if self._in_place else "\n"
        click.echo(f"simulated: {words}".ljust(78) + end, err=True, nl=False)

    def over(self) -> None:
        if self._in_place:
            click.echo(" " * 78 + "\r", err=True, nl=False)


def _about(seconds: float) -> str:
    return show.span(1000 * max(1, math.ceil(seconds)))
