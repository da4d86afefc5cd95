"""Bugs planted around the core: where it meets disks, the machine, and those who ask."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

CHAOS = ("tests/sim/test_chaos.py",)
COPIES = ("tests/sim/test_copies.py",)
READS = ("tests/sim/test_reads.py",)
REPLICA = ("tests/sim/test_replica.py",)
PROPOSALS = ("tests/unit/test_replica_proposals.py",)
REQUESTS = ("tests/unit/test_state_requests.py",)

VOUCHING = "mesh/vouching.py"
CONSENSUS = "mesh/consensus.py"
HOLDER = "swarmd/cluster/replica.py"
OPENING = "swarmd/cluster/opening.py"
MEMBERS = "swarmd/cluster/members.py"
FORWARDING = "swarmd/cluster/proposals.py"
SNAPSHOTS = "swarmd/cluster/snapshots.py"
MACHINE = "swarmd/state/machine.py"
REMEMBERED = "swarmd/state/requests.py"

MUTANTS = (
    # Durability
    Mutant(
        "acknowledges before its own log is durable", CONSENSUS,
        "                self._log.append(message.entries, hard_state, on_done=written)\n",
        "                self._log.append(message.entries, hard_state, on_done=written)\n"
        "                for early in message.responses:\n"
        "                    if early.to != self.raft_id:\n"
        "                        self._send(early)\n",
        CHAOS,
    ),
    Mutant(
        "the place in the log is written after the transaction", MACHINE,
        '            conn.executemany("INSERT OR REPLACE INTO meta VALUES (?,?)", rows)\n'
        '            conn.execute("COMMIT")\n',
        '            conn.execute("COMMIT")\n'
        '            conn.executemany("INSERT OR REPLACE INTO meta VALUES (?,?)", rows)\n',
        REQUESTS,
    ),
    Mutant(
        "who votes is not stored with the place in the log", HOLDER,
        "None if conf is None else encode_conf(conf))", "None)", COPIES,
    ),
    Mutant(
        "compacts past what the state has on disk", OPENING,
        "        durable = await store.make_durable()\n        if durable >= upto:",
        "        durable = place.index\n        if durable >= upto:", (*REPLICA, *CHAOS),
    ),
    Mutant(
        "keeps no entries for those who were away for a moment", OPENING,
        "upto = place.index - settings.log_entries_kept", "upto = place.index", COPIES,
    ),
    Mutant(
        "goes on with a log that is not the newest", OPENING,
        "        if found is not None:", "        if False:", REPLICA,
    ),
    Mutant(
        "votes anew after its log was lost", OPENING,
        "    elif fresh_log:\n", "    elif False:\n", COPIES,
    ),
    Mutant(
        "takes the place of a node that is still there", MEMBERS,
        "        if self._wires.linked(old):\n", "        if False:\n", REPLICA,
    ),
    Mutant(
        "lets a node come back that was removed", "swarmd/state/rules/removal.py",
        '    tx.execute("INSERT INTO gone VALUES (?,?,?)", (node.id, node.name, tx.at))\n', "",
        (*REPLICA, "tests/unit/test_state_removal.py"),
    ),
    Mutant(
        "takes requests of a node that was removed", REMEMBERED,
        "        self._sessions[origin] = _Session(GONE, 0, 0)\n",
        "        self._sessions[origin] = _Session(0, 0, 0)\n",
        ("tests/unit/test_state_removal.py",),
    ),
    # Requests
    Mutant(
        "applies what comes again", MACHINE,
        "if request is not None and not requests.admit(request):",
        "if request is not None and not requests.admit(request) and False:", REQUESTS,
    ),
    Mutant(
        "forgets requests by number, not in the log's order", REMEMBERED,
        "            oldest = session.order.popleft()\n",
        "            oldest = min(session.known)\n            session.order.remove(oldest)\n",
        REQUESTS,
    ),
    Mutant(
        "takes a request that it has forgotten for a new one", REMEMBERED,
        "        if request.seq <= session.floor:", "        if False:", REQUESTS,
    ),
    Mutant(
        "takes requests of a boot that is over", REMEMBERED,
        "        if request.boot < session.boot:", "        if False:", REQUESTS,
    ),
    Mutant(
        "does not send again after a change of leaders", FORWARDING,
        "        self._unsent = deque(self._pending.values())\n", "", PROPOSALS,
    ),
    Mutant(
        "answers when the leader has it, not when it is applied here", FORWARDING,
        "METHOD, body, self._settings.forward_timeout_s)\n",
        "METHOD, body, self._settings.forward_timeout_s)\n"
        "            for pending in batch:\n                self._settle(pending, None, None)\n",
        (*PROPOSALS, *READS),
    ),
    Mutant(
        "forwards what only its own term allows", FORWARDING,
        "        if term is not None and (leadership.leader, leadership.term) != (self._me, term):",
        "        if False:", (*PROPOSALS, *READS),
    ),
    Mutant(
        "takes any number of writes at once", FORWARDING,
        "        if len(self._pending) >= self._settings.in_flight_max:", "        if False:",
        (*PROPOSALS, *REPLICA),
    ),
    Mutant(
        "says busy of what an earlier leader may have done", FORWARDING,
        "            if pending.maybe_done:\n", "            if False:\n", PROPOSALS,
    ),
    Mutant(
        "forgets that an earlier leader was told", FORWARDING,
        "pending.told = pending.told or told", "pending.told = told", PROPOSALS,
    ),
    Mutant(
        "waits for answers of a leader that was cut off", FORWARDING,
        "            if leader != leadership.leader:\n                scope.cancel()\n",
        "            pass\n", (*PROPOSALS, *READS),
    ),
    Mutant(
        "what became of requests does not come with a copy", HOLDER,
        "            self._proposals.deliver_kept(kept)\n", "            pass\n", COPIES,
    ),
    # Reads
    Mutant(
        "reads what this node happens to have", HOLDER,
        "            await self._catch_up(self._consensus.read_index)\n", "            pass\n",
        (*READS, *CHAOS),
    ),
    Mutant(
        "reads before it has applied what the leader vouched for", HOLDER,
        "            await self.wait_applied(index)\n            return index\n",
        "            return index\n", (*READS, *CHAOS),
    ),
    Mutant(
        "shares the answer to a question asked before", VOUCHING,
        "        read = self._gathering\n        await read.done.wait()",
        "        read = self._flying or self._gathering\n        await read.done.wait()", READS,
    ),
    Mutant(
        "shares the word of a heartbeat that went before", VOUCHING,
        "        read = self._patient\n", "        read = self._beating or self._patient\n", READS,
    ),
    Mutant(
        "who lost the lead vouches on", VOUCHING,
        "            if read is not None:\n                read.done.set()\n",
        "            if read is not None:\n                _settle(read, 1)\n", READS,
    ),
    # Leaders and time
    Mutant(
        "leads before it has applied what came before its term", HOLDER,
        "        ready = consensus.leads and self._applied >= consensus.term_began > 0\n",
        "        ready = consensus.leads\n", (*READS, *CHAOS),
    ),
    Mutant(
        "stamps entries with its own clock, wherever it stands", HOLDER,
        "        return self._stamps.now_ms(self.entry_at)\n",
        "        return self._now_ms()\n", (*READS, *CHAOS),
    ),
    Mutant(
        "stops without having another lead", OPENING,
        "            await replica.hand_over_and_leave()\n", "", REPLICA,
    ),
    # Copies of the state
    Mutant(
        "gives a new member a copy from before it was one", SNAPSHOTS,
        "            if made.index + 1 >= needed_index and conf == encode_conf(made.conf_state):",
        "            if made.index + 1 >= needed_index:", COPIES,
    ),
    Mutant(
        "takes a damaged copy", SNAPSHOTS,
        "        if found.sha256 != content.sha256 or found.size_bytes != content.size_bytes:",
        "        if False:", COPIES,
    ),
    Mutant(
        "does not note that a copy is being put in place", HOLDER,
        "        await self._note_installing(snapshot.meta.index)\n", "", COPIES,
    ),
    Mutant(
        "does not tell watchers that events were left out", HOLDER,
        "        self._feed.cut_off()\n", "", REPLICA,
    ),
    Mutant(
        "a state that cannot be compacted while the log is full ends the node", OPENING,
        "            with suppress(LogBusy):  # it looks again soon\n",
        "            with suppress():\n", CHAOS,
    ),
    # The machine
    Mutant(
        "applies a leader's own command in a term that is over", MACHINE,
        "            if term is not None and term != entry.term:", "            if False:",
        ("tests/unit/test_state_jobs.py", "tests/unit/test_state_determinism.py"),
    ),
    Mutant(
        "a batch that is refused in part leaves its events behind", MACHINE,
        "            tx.undo(mark)\n", "", REQUESTS,
    ),
)  # fmt: skip
