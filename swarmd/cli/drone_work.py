"""A drone's life: it says that it is there, comes for work, builds, uploads and reports.

What it is given is its own until it has reported it, and a report is repeated until it is answered:
of a package that is no longer its own the swarm hears nothing new from it, and says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import trio

from swarmd import __version__
from swarmd.cli.drone_builds import Workshop
from swarmd.cli.drone_link import Link, Registered, Says, Work
from swarmd.domain.builds import ERROR_CHARS_MAX
from swarmd.domain.errors import Conflict, Invalid, NotFound, SwarmError, Unavailable
from swarmd.domain.pauses import doubling
from swarmd.drivers.load import HostLoad, memory
from swarmd.drivers.portage_results import Made, error_text, pause_after
from swarmd.drivers.portage_sync import TreeSync

log = logging.getLogger(__name__)

BEAT_EVERY_S = 10.0
ASK_EVERY_S = 2.0
"""For work, and for anything that no node answered."""
AGAIN_S_MAX = 30.0
REPORT_S_MAX = 3600.0
"""For how long nodes that do not answer are tried again."""
UPLOAD_S_MAX = 120.0
"""The same of an upload that they answer, and do not take: their disks may be full."""
FAREWELL_S = 10.0
DESCRIBE_EVERY_S = 900.0
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class About:
    """What a drone says of itself that stays as it is."""

    id: str
    name: str
    cores: int
    auto_reboot: bool


@dataclass
class Task:
    """A package while it is this drone's."""

    package: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    taken: bool = False
    """The swarm has taken it back."""


class Drone:
    def __init__(self, about: About, link: Link, workshop: Workshop, tree: TreeSync) -> None:
        self._about = about
        self._link = link
        self._workshop = workshop
        self._tree = tree
        self._task: Task | None = None
        self._beat_now = trio.Event()
        self._load = HostLoad()
        self._unfinished = 0
        """Builds in a row that came to no end here."""

    async def live(self, *, once: bool) -> None:
        """Until it is cancelled; `once`: until there is no work for it. Any SwarmError before the
        first word was answered comes out."""
        self._heed(await self._first_word(once), None)
        log.info("registered", extra={"drone": self._about.name, "id": self._about.id})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            nursery.start_soon(self._look_at_tree)
            await self._work(once)
            nursery.cancel_scope.cancel()

    async def leave(self) -> None:
        """Give back what it holds, begun or not. The swarm needs no farewell; this is quicker."""
        with trio.move_on_after(FAREWELL_S) as bound:
            try:
                for package in await self._link.held(self._says()):
                    await self._link.complete(self._report(package, "returned"))
                    log.info("given back", extra={"package": package})
            except SwarmError as refusal:
                log.warning("nothing is given back", extra={"error": refusal.message})
        if bound.cancelled_caught:
            log.warning("nothing is given back", extra={"error": "no node answered in time"})

    # Signs of life

    async def _first_word(self, once: bool) -> Registered:
        pauses = doubling(ASK_EVERY_S, AGAIN_S_MAX)
        while True:
            try:
                return await self._link.introduce(self._says())
            except Conflict as refusal:
                raise Conflict(
                    f"{refusal.message}; or where that is this host of before, put its id, as"
                    " /api/v1/nodes?all=true has it, into the file of ids (--id-file)"
                ) from None
            except Unavailable as refusal:
                if once or type(refusal) is not Unavailable:
                    raise
                log.warning("no node answers yet", extra={"error": refusal.message})
            await trio.sleep(next(pauses))

    async def _beat(self) -> None:
        while True:
            self._beat_now, task = trio.Event(), self._task
            try:
                self._heed(await self._link.register(self._says()), task)
                pause_s = BEAT_EVERY_S
            except SwarmError as refusal:
                log.warning("no sign of life was taken", extra={"error": refusal.message})
                pause_s = ASK_EVERY_S
            with trio.move_on_after(pause_s):
                await self._beat_now.wait()

    def _heed(self, told: Registered, task: Task | None) -> None:
        """`task` is what it was at when it spoke: of what came later this says nothing."""
        if task is not None and task.package in (told.stop_work, *(told.revoke or ())):
            log.info("the swarm has taken it back", extra={"package": task.package})
            task.taken = True
            task.scope.cancel()

    def _says(self) -> Says:
        ram_bytes, _ = memory()
        return {
            "id": self._about.id, "name": self._about.name, "type": "drone",
            "capabilities": {
                "cores": self._about.cores, "ram_gb": round(ram_bytes / GIB, 1),
                "auto_reboot": self._about.auto_reboot, "portage_timestamp": self._tree.tree_at,
            },
            "metrics": self._load.measure(),
            "current_task": self._task.package if self._task else None,
            "version": __version__,
        }  # fmt: skip

    async def _look_at_tree(self) -> None:
        """It may be synchronized while the drone lives."""
        while True:
            await trio.sleep(DESCRIBE_EVERY_S)
            await self._tree.look()

    # Work

    async def _work(self, once: bool) -> None:
        pauses, idle = doubling(ASK_EVERY_S, AGAIN_S_MAX), True
        while True:
            try:
                package = await self._ask_for_work()
            except SwarmError as refusal:
                if once:
                    raise
                log.warning("no work is to be had", extra={"error": refusal.message})
                await trio.sleep(next(pauses))
                continue
            pauses = doubling(ASK_EVERY_S, AGAIN_S_MAX)
            if package is not None:
                await self._do(package)
            elif once and idle:
                return
            else:
                # What waited for what was just built may be let go a moment later.
                await trio.sleep(ASK_EVERY_S)
            idle = package is None

    async def _ask_for_work(self) -> str | None:
        work = await self._ask()
        if work.action == "sync_portage" and work.package is None:
            await self._tree.bring_up_to(str(work.expected_timestamp))
            self._heed(await self._link.register(self._says()), None)
            work = await self._ask()
        return work.package

    async def _ask(self) -> Work:
        asked = self._about.id, self._about.cores, self._tree.tried
        try:
            return await self._link.work(*asked)
        except NotFound:
            # It is another swarm, or one that was put back to a time before this drone.
            self._heed(await self._link.register(self._says()), None)
            return await self._link.work(*asked)

    async def _do(self, package: str) -> None:
        self._task = task = Task(package)
        self._beat_now.set()  # by this the build begins
        log.info("building", extra={"package": package})
        report: Says | None = None
        try:
            with task.scope:
                try:
                    async with self._workshop.build(package) as made:
                        report = await self._tell_of(package, made)
                    self._unfinished = 0
                except (SwarmError, OSError) as error:
                    log.error("the build came to no end", extra={"error": str(error)})
                    report = self._report(package, "returned", error=str(error))
                    self._unfinished += 1
            if task.taken:
                report = self._report(package, "returned")
            assert report is not None
            await self._send(report)
        finally:
            self._task = None
        if self._unfinished:
            await trio.sleep(pause_after(self._unfinished))

    async def _tell_of(self, package: str, made: Made) -> Says:
        """Upload what was built, and say how it went."""
        failed, took_s = made.failed, made.took_s
        if failed is None:
            try:
                for built in made.packages:
                    await self._upload(built.path, built.file)
            except Conflict as refusal:
                return self._report(package, "returned", took_s, refusal.message)
            except SwarmError as refusal:
                if isinstance(refusal, Invalid) and "status" in refusal.facts:
                    # A node has looked at it. Built again it would be refused again.
                    log.error("refused", extra={"package": package, "error": refusal.message})
                    return self._report(package, "failed", took_s, refusal.message)
                log.error("not uploaded", extra={"package": package, "error": refusal.message})
                return self._report(package, "failed", took_s, refusal.message, upload_failed=True)
            return self._report(package, "success", took_s)
        file = await trio.to_thread.run_sync(self._workshop.keep_log, package, failed)
        facts = {"package": package, "why": failed.reason, "log": str(file or "none")}
        log.warning("the build failed", extra=facts)
        flags = {"masked": failed.masked, "missing_binary": failed.missing}
        return self._report(package, "failed", took_s, error_text(failed), **flags)

    async def _upload(self, path: str, file: Path) -> None:
        """Unavailable: no node took it, for as long as it was tried."""
        began, pauses = trio.current_time(), doubling(ASK_EVERY_S, AGAIN_S_MAX)
        while True:
            try:
                return await self._link.upload(path, file, self._says())
            except Unavailable as refusal:
                limit_s = UPLOAD_S_MAX if refusal.facts.get("answered") else REPORT_S_MAX
                if trio.current_time() - began >= limit_s:
                    raise
                log.warning("no node takes the upload", extra={"error": refusal.message})
            await trio.sleep(next(pauses))

    async def _send(self, report: Says) -> None:
        """Again and again; what nobody heard of in an hour goes back by itself."""
        facts = {"package": report["package"], "status": report["status"]}
        pauses = doubling(ASK_EVERY_S, AGAIN_S_MAX)
        with trio.move_on_after(REPORT_S_MAX):
            while True:
                try:
                    done = await self._link.complete(report)
                except Unavailable as refusal:
                    log.warning("no node takes the report", extra={"error": refusal.message})
                    await trio.sleep(next(pauses))
                    continue
                except SwarmError as refusal:
                    log.error("the report is refused", extra=facts | {"error": refusal.message})
                    return
                log.info("reported", extra=facts | {"stale": done.stale})
                return

    def _report(
        self, package: str, status: str, took_s: float | None = None, error: str | None = None,
        **flags: bool,
    ) -> Says:  # fmt: skip
        said: Says = {"id": self._about.id, "package": package, "status": status}
        if took_s is not None:
            said["build_duration_s"] = round(took_s, 3)
        said["error_detail"] = None if error is None else error[:ERROR_CHARS_MAX]
        return said | {flag: True for flag, up in flags.items() if up}
