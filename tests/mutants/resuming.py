"""Bugs planted where something goes on elsewhere: requests, watches, sessions, copies."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

REQUESTS = ("tests/unit/test_state_requests.py",)
PROPOSALS = ("tests/unit/test_replica_proposals.py",)
REPLICA = ("tests/sim/test_replica.py",)
COPIES = ("tests/sim/test_copies.py",)
AGAIN = ("tests/sim/test_copies_again.py",)
REMOTES = ("tests/unit/test_remote.py", "tests/sim/test_remotes.py")
WATCHES = ("tests/sim/test_watches.py",)
ALONE = ("tests/unit/test_cluster_alone.py",)

REMEMBERED = "swarmd/state/requests.py"
FORWARDING = "swarmd/cluster/proposals.py"
OPENING = "swarmd/cluster/opening.py"
HOLDER = "swarmd/cluster/replica.py"
SNAPSHOTS = "swarmd/cluster/snapshots.py"
FEED = "swarmd/cluster/feed.py"
REMOTE = "swarmd/cluster/remote.py"
ATTACHING = "swarmd/cluster/attaching.py"
SERVING = "swarmd/cluster/serving.py"

MUTANTS = (
    # Requests, across restarts and leaders
    Mutant(
        "what was applied is forgotten at a restart", REMEMBERED,
        '            insert_rows(conn.execute, "outcomes", session.gathered[-REMEMBERED_MAX:])\n',
        "", REQUESTS,
    ),
    Mutant(
        "what was forgotten is taken anew after a restart", REMEMBERED,
        "_Session(boot, floor, place)", "_Session(boot, 0, place)", REQUESTS,
    ),
    Mutant(
        "outcomes of an earlier boot are taken for this one's", REMEMBERED,
        "            self._begun[request.origin] = None\n            return True",
        "            return True", REQUESTS,
    ),
    Mutant(
        "each replica forgets requests when it likes", REMEMBERED,
        "        if len(session.order) > REMEMBERED_MAX:",
        "        if len(session.order) > REMEMBERED_MAX - len(session.gathered):", REQUESTS,
    ),
    Mutant(
        "what became of a boot before is told to this one", REMEMBERED,
        "    if last_boot(conn, origin) != boot:\n        return\n", "", (*REQUESTS, *COPIES),
    ),
    Mutant(
        "counts its requests anew, and not its boots", OPENING,
        "    boot = max(raft_log.boot, before + 1, 1 + await store.read(LastBoot(me)))",
        "    boot = 1", REPLICA,
    ),
    Mutant(
        "takes the outcome of an earlier boot for its own", FORWARDING,
        " or request.origin != self._origin or request.boot != self.boot:",
        " or request.origin != self._origin:", PROPOSALS,
    ),
    Mutant(
        "takes the outcomes of others for its own", FORWARDING,
        " or request.origin != self._origin or request.boot != self.boot:",
        " or request.boot != self.boot:", PROPOSALS,
    ),
    Mutant(
        "does not try again what a leader refused", FORWARDING,
        "            elif refusal is not None:\n                nursery.start_soon(",
        "            elif refusal is not None:\n                (lambda *_: None)(", PROPOSALS,
    ),
    # Copies
    Mutant(
        "sends a copy from which the log does not go on", SNAPSHOTS,
        "            if made.index + 1 >= needed_index and conf ==",
        "            if conf ==", AGAIN,
    ),
    Mutant(
        "a copy that goes on is sent from its beginning", SNAPSHOTS,
        "            file.seek(start)\n", "            pass\n", AGAIN,
    ),
    Mutant(
        "begins its log behind a copy that is not in place yet", HOLDER,
        "        await self._store.install(file)\n        await restore_log()\n",
        "        await restore_log()\n        await self._store.install(file)\n", COPIES,
    ),
    Mutant(
        "an installation that was cut short is not ended", OPENING,
        "    if place.index == int(began) and place.index > raft_log.last_index():",
        "    if False:", COPIES,
    ),
    Mutant(
        "does not know members that came with a copy", HOLDER,
        "        self._members_stale.set()\n        self._wake_applied()\n        log.info(",
        "        self._wake_applied()\n        log.info(", AGAIN,
    ),
    Mutant(
        "those it serves are not told that a copy left outcomes out", HOLDER,
        "        self._serving.cut_off()\n", "", WATCHES,
    ),
    # Watches
    Mutant(
        "a watch passes over events that are no longer kept", HOLDER,
        "            if not events or events[0].seq != after + 1:", "            if not events:",
        (*REPLICA, *ALONE),
    ),
    Mutant(
        "a watch that goes on misses the last event before it", HOLDER,
        "self._past(start, self._last_event_seq, wants)",
        "self._past(start, self._last_event_seq - 1, wants)", (*REPLICA, *ALONE),
    ),
    Mutant(
        "a watch tells events again where past and present meet", FEED,
        "            event = await self._next()\n            if event.seq > self.last_seq:",
        "            event = await self._next()\n            if True:", WATCHES,
    ),
    Mutant(
        "who is full misses events and hears no word of it", FEED,
        "            self.leave(outlet)\n            outlet.close()\n\n    def cut_off",
        "            pass\n\n    def cut_off", REMOTES,
    ),
    Mutant(
        "a watch that was dropped ends as if all had been told", FEED,
        "            raise FellBehind(\n"
        '                "events came faster than they were taken", after=self.last_seq\n'
        "            ) from None",
        "            raise StopAsyncIteration from None", (*REPLICA, *REMOTES),
    ),
    # Nodes without a replica
    Mutant(
        "events between two sessions are left out", ATTACHING,
        "            while self._seq < upto:\n",
        "            self._seq = upto\n            while self._seq < upto:\n", REMOTES,
    ),
    Mutant(
        "a watch begins before the replica heeds it", ATTACHING,
        "                await self._acknowledged(session)\n", "                pass\n", REMOTES,
    ),
    Mutant(
        "a replica passes over events that are no longer kept", SERVING,
        "                    if not page or page[0].seq != at + 1:",
        "                    if not page:", REMOTES,
    ),
    Mutant(
        "a replica that knows less shows an older state", SERVING,
        "                await self._replica.wait_applied(ask.at_least)\n", "", REMOTES,
    ),
    Mutant(
        "forgets which state it has seen", REMOTE,
        "        attaching.at_least = max(attaching.at_least, answer.at_least)\n", "", WATCHES,
    ),
    Mutant(
        "counts anew after its log was lost", REMOTE,
        "        if last >= self._proposals.boot:", "        if False:", REMOTES,
    ),
    Mutant(
        "speaks for another node", SERVING,
        "            if request.id.origin != origin:", "            if False:", REMOTES,
    ),
    Mutant(
        "stays with a replica that is cut off from the others", ATTACHING,
        '            session.end("other replicas know more")\n', "            pass\n", REMOTES,
    ),
    Mutant(
        "stays with a replica that is silent", ATTACHING,
        '                    session.end("the replica does not answer any more")\n',
        "                    pass\n", REMOTES,
    ),
    Mutant(
        "what became of requests is lost with its session", SERVING,
        "            return await self._replica.read(asked)\n", "            return []\n", REMOTES,
    ),
)  # fmt: skip
