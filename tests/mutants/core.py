"""Bugs planted in the core of consensus: each has cost somebody data once."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

UNIT = (
    "tests/unit/test_raft_node.py", "tests/unit/test_raft_log.py", "tests/unit/test_raft_quorum.py",
    "tests/unit/test_raft_tracker.py", "tests/unit/test_replica_promises.py",
    "tests/conformance/test_own_transcripts.py",
)  # fmt: skip
WORLD = (*UNIT, "tests/unit/test_raft_cluster.py")


def core(name: str, file: str, old: str, new: str, tests: tuple[str, ...] = UNIT) -> Mutant:
    return Mutant(name, f"mesh/raft/{file}", old, new, tests)


MUTANTS = (
    core(
        "any voter commits by itself", "quorum.py",
        "indexes[(len(indexes) - 1) // 2]", "indexes[-1]",
    ),
    core(
        "any voter elects itself", "quorum.py",
        "quorum = len(voters) // 2 + 1", "quorum = 1",
    ),
    core(
        "half of the voters commit", "quorum.py",
        "indexes[(len(indexes) - 1) // 2]", "indexes[len(indexes) // 2]",
    ),
    core(
        "half of the voters elect", "quorum.py",
        "quorum = len(voters) // 2 + 1", "quorum = (len(voters) + 1) // 2",
    ),
    core(
        "a joint membership commits by the new half alone", "quorum.py",
        "    return min(majority_commit(incoming, acked), majority_commit(outgoing, acked))",
        "    return majority_commit(incoming, acked)",
    ),
    core(
        "a joint membership elects by the new half alone", "quorum.py",
        "    return min(majority_vote(incoming, votes), majority_vote(outgoing, votes))",
        "    return majority_vote(incoming, votes)",
    ),
    core(
        "votes without a look at the candidate's log", "election.py",
        "granted = free and core.log.is_up_to_date(message.index, message.log_term)",
        "granted = free",
    ),
    core(
        "votes by the length of the log alone", "log.py",
        "(term, index) >= (self.last_term, self.last_index)", "index >= self.last_index",
    ),
    core(
        "votes twice in a term", "election.py",
        "        core.vote == message.sender\n", "        not pre\n",
    ),
    core(
        "keeps its vote in a new term", "core.py",
        "            self.vote = NOBODY\n", "            pass\n",
    ),
    core(
        "a second answer replaces a voter's first", "membership.py",
        "self.votes.setdefault(voter, granted)", "self.votes[voter] = granted",
    ),
    core(
        "keeps its own term when it hears of a newer one", "step.py",
        "core.become_follower(message.term, message.sender if leads else NOBODY)\n    return True",
        "core.become_follower(core.term, message.sender if leads else NOBODY)\n    return True",
    ),
    core(
        "no lease: a vote request deposes a living leader", "election.py",
        "core.election_elapsed < core.config.election_tick", "False",
    ),
    core(
        "cuts the log off at every append", "log.py",
        "new = 0 if index == self.last_index else self._first_new(entries)", "new = 0",
    ),
    core(
        "appends without a look at what comes before", "log.py",
        "        if not self.matches(index, term):\n            return None\n", "",
    ),
    core(
        "an old append is not known for one", "following.py",
        "    if message.index < log.committed:\n", "    if False:\n",
    ),
    core(
        "commits an entry of an old term by count", "log.py",
        "if index <= self.committed or self.term_or_zero(index) != term:",
        "if index <= self.committed:",
    ),
    core(
        "commits beyond what was agreed on with the leader", "log.py",
        "self.commit_to(min(commit, agreed))", "self.commit_to(min(commit, self.last_index))",
    ),
    core(
        "a heartbeat commits what the follower may not have", "heartbeats.py",
        "commit = min(progress.match, core.log.committed)", "commit = core.log.committed",
    ),
    core(
        "acknowledges appends before they are synced", "messages.py",
        "AFTER_APPEND = frozenset({K.APPEND_RESPONSE, K.VOTE_RESPONSE, K.PRE_VOTE_RESPONSE})",
        "AFTER_APPEND = frozenset({K.VOTE_RESPONSE, K.PRE_VOTE_RESPONSE})",
    ),
    core(
        "the leader counts itself before its own disk has it", "replication.py",
        "    core.send(MessageKind.APPEND_RESPONSE, core.id, index=core.log.last_index)\n",
        "    core.tracker.peers[core.id].acknowledge(core.log.last_index)\n",
    ),
    core(
        "a write of an entry since replaced counts as its own", "unstable.py",
        "elif kept != term:", "elif False:",
    ),
    core(
        "applies what its own disk does not have", "node.py",
        "committed = log.next_committed(allow_unstable=not self._async)",
        "committed = log.next_committed(allow_unstable=True)",
    ),
    core(
        "reads without asking whether it still leads", "reading.py",
        "    if core.tracker.won_by(acks) is not VoteResult.WON:\n        return\n", "",
    ),
    core(
        "reads before an entry of its own term is committed", "reading.py",
        "    elif not _committed_in_own_term(core):", "    elif False:",
    ),
    core(
        "the only voter reads before an entry of its term is committed", "reading.py",
        "    if core.alone and _committed_in_own_term(core):", "    if core.alone:",
    ),
    core(
        "a second change of members while one is under way", "proposals.py",
        "    if core.pending_change_index > core.log.applied:", "    if False:",
    ),
    core(
        "a new leader forgets changes of members that wait", "core.py",
        "self.pending_change_index = self.log.last_index", "self.pending_change_index = 0",
    ),
    core(
        "takes a snapshot that is behind its own log", "following.py",
        "    if meta.index <= log.committed:\n        return False\n", "",
    ),
)  # fmt: skip
