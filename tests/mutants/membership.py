"""Bugs planted in membership: who is there, who is let in, who goes, and who votes."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

SWIM = ("tests/unit/test_swim.py", "tests/unit/test_swim_parts.py")
TALES = ("tests/unit/test_swim_syncing.py", *SWIM)
AUTOPILOT = ("tests/unit/test_control_members.py",)
RULES = ("tests/unit/test_members_rules.py",)
NAMES = ("tests/sim/test_names.py",)
BOTTLED = (
    "tests/sim/test_bottle.py::test_a_node_that_is_removed_ends_and_is_let_in_no_more",
    "tests/sim/test_bottle.py::test_a_node_leaves_and_its_host_joins_again_as_another",
)
REPLICA = ("tests/sim/test_replica.py",)
VERSIONS = ("tests/unit/test_state_versions.py", "tests/sim/test_versions.py")
REMOVED = ("tests/unit/test_state_removal.py",)
TRUSTED = ("tests/unit/test_state_trust.py",)
LET_IN = ("tests/unit/test_trust.py", "tests/drivers/test_trust.py")

BELIEFS = "mesh/swim/beliefs.py"
PROBING = "mesh/swim/probing.py"
MEMBERS = "swarmd/cluster/members.py"
TRUST = "swarmd/cluster/trust.py"
VOTERS = "swarmd/control/members.py"
REMOVAL = "swarmd/control/removal.py"
GOING = "swarmd/state/rules/removal.py"
NODES = "swarmd/state/rules/nodes.py"

CLAIMED = (
    "        if member is None or claim.incarnation < member.incarnation or not member.living:"
    "\n            return\n"
)
CLAIMED_EVER = "        if member is None or not member.living:\n            return\n"

MUTANTS = (
    # Gossip
    Mutant(
        "words of the same life clear a suspect", BELIEFS,
        "words.incarnation <= member.incarnation:\n            return  # as most",
        "words.incarnation < member.incarnation:\n            return  # as most", SWIM,
    ),
    Mutant(
        "a refutation does not outdo what it refutes", BELIEFS,
        "self.say(msgspec.structs.replace(me.words, incarnation=incarnation + 1))",
        "self.say(msgspec.structs.replace(me.words, incarnation=incarnation))", SWIM,
    ),
    Mutant(
        "a suspicion that was refuted counts again", BELIEFS,
        f"{CLAIMED}        by = tuple(", f"{CLAIMED_EVER}        by = tuple(", SWIM,
    ),
    Mutant(
        "a death that was refuted counts again", BELIEFS,
        f"{CLAIMED}        self._bury(", f"{CLAIMED_EVER}        self._bury(", SWIM,
    ),
    Mutant(
        "late words bring back who left", BELIEFS,
        "            self._roster.bury(words.id, words.incarnation)\n", "            pass\n", SWIM,
    ),
    Mutant(
        "who was removed is listened to again", BELIEFS,
        "        if roster.removed(words.id) or roster.buried(",
        "        if roster.buried(", SWIM,
    ),
    Mutant(
        "a node that was stopped calls others dead when it wakes", BELIEFS,
        "                member.suspicion.begin_again(now)\n", "                pass\n",
        SWIM,
    ),
    Mutant(
        "the word of others alone makes a node dead", BELIEFS,
        "        if self._roster.me.id not in suspicion.accusers and not suspicion.looked:",
        "        if False:", SWIM,
    ),
    Mutant(
        "the dead of another's tale are dead at once", "mesh/swim/syncing.py",
        "            beliefs.hear_suspect(now, Suspect(words.id, words.incarnation, ()))",
        "            if (dead := beliefs._roster.get(words.id)) is not None and dead.living:\n"
        "                beliefs._bury(now, dead, words.incarnation, words.id)", TALES,
    ),
    Mutant(
        "a prober that nobody answers trusts itself", PROBING,
        "            self._health.worsen(missing if probe.asked else 1)\n",
        "            pass\n", SWIM,
    ),
    Mutant(
        "a connection that is answered proves nothing", PROBING,
        "        if what is Knocked.ANSWERED:", "        if False:", SWIM,
    ),
    Mutant(
        "nobody is asked for a look of his own", PROBING,
        "            self._settings.indirect_probes,\n", "            0,\n", SWIM,
    ),
    # Coming
    Mutant(
        "tells a node that it is in before it is", MEMBERS,
        "            await self.change(learners=(node_id,))\n            return True",
        "            return True", (*REPLICA, "tests/sim/test_copies.py"),
    ),
    Mutant(
        "two that ask at once both get the last place", MEMBERS,
        "        async with self._taking_in:\n", "        if True:\n", REPLICA,
    ),
    Mutant(
        "a change of members counts while both halves still decide", MEMBERS,
        "                not conf.voters_outgoing\n                and all(",
        "                all(", ("tests/sim/test_membership.py",),
    ),
    Mutant(
        "another node's key takes over its id", MEMBERS,
        "            if known is not None and known.public_key != ask.node.public_key:",
        "            if False:", LET_IN,
    ),
    Mutant(
        "a token is good for ever", TRUST,
        "        if ends_at <= now_ms:", "        if ends_at == 0:", LET_IN,
    ),
    Mutant(
        "with a token any node's place can be taken", TRUST,
        "        if ask.replaces is not None:", "        if False:", LET_IN,
    ),
    Mutant(
        "who proves whom it was speaks for others too", TRUST,
        "        elif shown.node_id != ask.replaces:", "        elif False:", LET_IN,
    ),
    Mutant(
        "a node that was removed keeps its connections", TRUST,
        "            self._shut_out(node_id, REMOVED)\n", "            pass\n", LET_IN,
    ),
    # Going
    Mutant(
        "a removal counts on voters that are not there", REMOVAL,
        "    return sum(n in reached for n in voters) > ", "    return len(voters) > ", RULES,
    ),
    Mutant(
        "a name is given over while its last lease runs", REMOVAL,
        '    if state == "suspect" or not silent:', '    if state == "suspect":', RULES,
    ),
    Mutant(
        "a copy of a host that is down gets its name", REMOVAL,
        "    if not _same_place(node.mesh, mesh, source):", "    if False:", (*RULES, *NAMES),
    ),
    Mutant(
        "the only voter goes, and nobody has all that it had", REMOVAL,
        '_lacks(view, n) == ""]', "True]", RULES,
    ),
    Mutant(
        "a leader that leaves is replaced twice", REMOVAL,
        "len(left) >= wanted and _decide(left, reached)", "False", (*RULES, *BOTTLED),
    ),
    Mutant(
        "a removed node is out of the state and not out of the log", REMOVAL,
        "        if node.id in (*view.voters, *view.learners):", "        if False:",
        (*NAMES, *BOTTLED),
    ),
    Mutant(
        "a removed node can open what the swarm keeps sealed", GOING,
        '    tx.execute("DELETE FROM wraps WHERE node_id = ?", (node.id,))\n', "",
        (*REMOVED, *TRUSTED),
    ),
    Mutant(
        "the word of a swarm of one outlives its node", GOING,
        '    tx.execute("DELETE FROM holds WHERE node_id = ? AND for_ms IS NULL", (node.id,))\n',
        "", REMOVED,
    ),
    # Autopilot
    Mutant(
        "plans while voters are between two sets", VOTERS,
        "    if view.joint:\n        return None\n", "", AUTOPILOT,
    ),
    Mutant(
        "as many vote as there are", VOTERS,
        "Change(voters=tuple(ready[: wanted - len(view.voters)]))", "Change(voters=tuple(ready))",
        AUTOPILOT,
    ),
    Mutant(
        "who lags gets a vote", VOTERS,
        'and p.active and p.state == "replicate" and p.match >= behind', "", AUTOPILOT,
    ),
    Mutant(
        "a voter that is gone keeps its vote beside its successor's", VOTERS,
        "Change(voters=(ready[0],), learners=(lost[0],))", "Change(voters=(ready[0],))", AUTOPILOT,
    ),
    Mutant(
        "a voter that is gone is never replaced", VOTERS,
        "    if ready and lost:", "    if False:", AUTOPILOT,
    ),
    Mutant(
        "takes voters out until no quorum is left", VOTERS,
        " and _spared(view, node_id, gone_s):", ":", AUTOPILOT,
    ),
    Mutant(
        "time away in an earlier absence counts", VOTERS,
        "        self._gone = {n: self._gone.get(n, now) for n in away}",
        "        self._gone |= {n: self._gone.get(n, now) for n in away}", AUTOPILOT,
    ),
    Mutant(
        "the machine goes on to what not all can apply", VOTERS,
        "version = min(*known, *others, VERSION)", "version = VERSION", VERSIONS,
    ),
    Mutant(
        "a program that is too old comes in again", NODES,
        "    if node.kind is NodeKind.MEMBER and node.machine_version <",
        "    if False and node.machine_version <", VERSIONS,
    ),
    Mutant(
        "the machine's version goes back", NODES,
        "    if command.version <= present:\n        return present\n", "", VERSIONS,
    ),
)  # fmt: skip
