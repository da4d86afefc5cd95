"""Why chaos does not come upon a mutant: what it would take, and who looks instead.

A reason here is no excuse for a seed that was not tried: where a seed finds it after all, that is
what the page says.
"""

from __future__ import annotations

TRUST = "simulated wires prove nothing, and whoever asks is believed: real nodes are tested for it"
RUNNER = "the simulation has a runner of its own: the real one is tested as a process"
VERSION = "all simulated nodes are of one version: tests/sim/test_versions.py has several"
MANY = "it takes more than the 4,096 requests of a boot that are remembered: no seed makes as many"
HINT = "gossip is a hint: a wrong belief is refuted soon, and what goes by it breaks no rule"
KEPT = "more events are kept than a run of chaos makes, and no watcher falls thousands behind"
HALVES = "it takes a crash within the round trip of a joint membership, and between its halves"
COSTS = "it costs time or memory, and no rule of a history"
TWICE = "another check stands behind it, and each is tested without the other"
LIARS = "no simulated node says what is not so"
LATE = "who waits is told at its deadline alone: it costs time, and no rule of a history"
VOUCHED = "a leader itself asks no sooner (`Vouching.ask`)"
ALONE = "no fault takes a log away alone"
SPARED = "chaos removes a host only while most voters are there and level (`Stage.spared`)"
TOLD_NOBODY = (
    "what was still under way would be done once, and nobody was told that it was not: it shows"
    " only where the same request is in the log twice, before and after"
)
TAKEN = (
    "it takes a node that was silent for 4 s and asks, and looks at the state, within the round"
    " trips in which its work is taken back"
)
BEHIND = "it takes a move to a replica that is behind just then, and a read of that one's own word"

WHY: dict[str, str] = {
    # The core
    "commits an entry of an old term by count": "five turns of leaders and crashes in one order"
    " (Figure 8 of the Raft paper), each within a few round trips: random search does not get"
    " there",
    "a joint membership commits by the new half alone": HALVES,
    "a joint membership elects by the new half alone": HALVES,
    # The replica
    "the place in the log is written after the transaction": "a simulated state is lost or kept as"
    " a whole: nothing ends between two of its statements",
    "keeps no entries for those who were away for a moment": COSTS,
    "forgets requests by number, not in the log's order": MANY,
    "takes a request that it has forgotten for a new one": MANY,
    "takes any number of writes at once": COSTS,
    "stops without having another lead": COSTS,
    "waits for answers of a leader that was cut off": COSTS,
    # Leases
    "a long grace outlasts the lease": RUNNER,
    "what waits for a place outlives its lease": RUNNER,
    # Membership
    "words of the same life clear a suspect": HINT,
    "a suspicion that was refuted counts again": HINT,
    "a death that was refuted counts again": HINT,
    "late words bring back who left": HINT,
    "who was removed is listened to again": HINT,
    "a node that was stopped calls others dead when it wakes": HINT,
    "the word of others alone makes a node dead": HINT,
    "a prober that nobody answers trusts itself": HINT,
    "a connection that is answered proves nothing": HINT,
    "nobody is asked for a look of his own": HINT,
    "another node's key takes over its id": TRUST,
    "a token is good for ever": TRUST,
    "with a token any node's place can be taken": TRUST,
    "who proves whom it was speaks for others too": TRUST,
    "a node that was removed keeps its connections": TRUST,
    "a removed node can open what the swarm keeps sealed": TRUST,
    "the machine goes on to what not all can apply": VERSION,
    "a program that is too old comes in again": VERSION,
    "the machine's version goes back": VERSION,
    # The core, again
    "a second answer replaces a voter's first": "a voter that keeps its word never answers one"
    " ballot in two ways",
    # What another check stands behind
    "forwards what only its own term allows": TWICE,
    "applies a leader's own command in a term that is over": TWICE,
    "a change of members counts while both halves still decide": TWICE,
    "plans while voters are between two sets": TWICE,
    "a second change of members while one is under way": TWICE,
    # What no run has
    "speaks for another node": LIARS,
    "a batch that is refused in part leaves its events behind": "no rule that clients of chaos come"
    " to tells of anything before it refuses",
    "a lease begins anew where work begins": RUNNER,
    "the dead of another's tale are dead at once": HINT,
    "new work goes to hosts that are silent": COSTS,
    "a copy of a host that is down gets its name": "no host of chaos is a copy of another",
    "a name is given over while its last lease runs": "no host of chaos comes back under its old"
    " name before the last one's lease is over",
    "a watch passes over events that are no longer kept": KEPT,
    "a replica passes over events that are no longer kept": KEPT,
    "who is full misses events and hears no word of it": KEPT,
    # What goes on elsewhere
    "what was forgotten is taken anew after a restart": MANY,
    "each replica forgets requests when it likes": MANY,
    "a copy that goes on is sent from its beginning": COSTS,
    "stays with a replica that is cut off from the others": COSTS,
    "stays with a replica that is silent": COSTS,
    # What time alone tells
    "does not send again after a change of leaders": LATE,
    "does not try again what a leader refused": LATE,
    "what became of requests does not come with a copy": LATE,
    "what became of requests is lost with its session": LATE,
    "no lease: a vote request deposes a living leader": "it costs an election: who wins has all"
    " that was agreed on, and nothing rests on this lease, for reads and leases ask a quorum",
    "who lags gets a vote": "a voter that lags costs time until it is level, and all are there in"
    " the end",
    "time away in an earlier absence counts": "votes move to learners for nothing: as many vote as"
    " should, and all of them are there",
    # What another check makes good
    "an old append is not known for one": "what is committed agrees with every leader's log, so"
    " nothing of it is taken, and its answer says less than the leader knows"
    " (`Progress.acknowledge`)",
    "takes a snapshot that is behind its own log": "one of an earlier leader is ignored for its"
    " term, one leader sends nothing else until it knows what became of its copy, and where the log"
    " has the copy's last entry it goes by that (`Log.matches`)",
    "reads before an entry of its own term is committed": f"{VOUCHED}; others reach it within the"
    " round trip of its first entry alone, and what they are told is old only where it and they"
    " missed the last commit before",
    "the only voter reads before an entry of its term is committed": f"{VOUCHED}; a learner alone"
    " could ask it otherwise, in the second before that votes too",
    "a new leader forgets changes of members that wait": "nobody changes members through a leader"
    " that has not applied what came before its term (`Leadership.ready`), and then none waits",
    "votes anew after its log was lost": f"{ALONE}; the check that follows finds a log that ends"
    " before the state does (`find_put_back`)",
    "who lost the lead vouches on": "leases alone ask so, and look at who leads once more before"
    " one is granted (`Leases.renew`)",
    "the word of a swarm of one outlives its node": "such a hold is taken back when others come,"
    " and of who is no member none is counted (`Leases.ends`)",
    "takes requests of a node that was removed": TOLD_NOBODY,
    "takes requests of a boot that is over": TOLD_NOBODY,
    "shares the word of a heartbeat that went before": "a lease by that word is as safe unless its"
    " answer is under way for 1.5 s: so much later than the heartbeat's start another is elected,"
    " and gives work away",
    # What no run comes to
    "commits beyond what was agreed on with the leader": "an append that ends before what is"
    " committed is one of over 512 KiB, or follows on 64 that nobody answered, and the follower's"
    " log has to end in entries of another leader",
    "says busy of what an earlier leader may have done": "a leader says busy with 32 MiB under way,"
    " a replica with 128 batches of others: no run has as much",
    "a hold ends before what runs by it is cut short": "the runner of the simulation always takes"
    " what it is told, within a millisecond",
    "alone without end, and nobody can know of it": "who is alone renews its lease within a second"
    " of another's coming, and that one votes no sooner (`settle_s`); and it takes two to go on"
    " without it",
    "work is taken from a node whose hold nobody had seen": "it takes a hold that comes into the"
    " log within the round trip between the leader's look and the taking, of a node that was silent"
    " for 4 s",
    "takes the place of a node that is still there": "a host of chaos begins anew when its node has"
    " ended: no other is there under its id",
    "a leader that leaves is replaced twice": "a leader has to leave while two learners are level,"
    " and to get to the end of it: short seeds have hardly one such. Seed 563 of ten minutes found"
    " the fault before it was planted",
    "a removal counts on voters that are not there": f"{SPARED}, so there is nothing to refuse",
    "the only voter goes, and nobody has all that it had": f"{SPARED}, never the only voter; of"
    " several the others have all, whoever gets its vote",
    "takes voters out until no quorum is left": "a member is taken out of the log after 600 s, and"
    " no run of chaos lasts as long after it lost one",
    "counts anew after its log was lost": f"{ALONE}; one that is put back is some seconds old, and"
    " goes on from a boot of then: it has to have been started again in between",
    "a watch begins before the replica heeds it": "it takes an event of the sort that is watched"
    " for, and by nobody else at that node, within the round trip in which a watch begins there",
    "those it serves are not told that a copy left outcomes out": "nodes leave a replica a second"
    " after it hears of no leader: it has to fall behind by more than the log keeps, and to get a"
    " copy, within that second",
    "a replica that knows less shows an older state": BEHIND,
    "forgets which state it has seen": f"{BEHIND}, and no beat may have come since from the one"
    " before",
    "a write of an entry since replaced counts as its own": "it takes a write that lasts over a"
    " change of terms and the conflicting append of the next leader, and a crash before the newer"
    " write is done",
    "forgets that an earlier leader was told": "what one leader took has to be agreed on after the"
    " deadline of who asked, who has met with nothing but refusals since",
    "shares the answer to a question asked before": "a write has to be acknowledged, and a read to"
    " begin elsewhere, within the round trip of a question asked there before; and that node must"
    " not have applied the write when the answer comes",
    "takes the outcome of an earlier boot for its own": "requests of two boots have to be of one"
    " number, the second under way; and what is answered too early is done within moments: somebody"
    " has to read before that",
    "a lease counts from its answer, not from when it was asked for": "it takes an answer that is"
    " half a second late, to a node that is not heard of any more from then on, and work that lasts"
    " for all of the 4 s after it",
    "a leader grants leases without a quorum's word": "it takes a leader that is cut off with work"
    " of its own, and another that is elected at once: a leader without a quorum gives up within"
    " two elections' time",
    "a lease is granted while work of the node is being given away": TAKEN,
    "a lease is granted between two takings": TAKEN,
    "a node that had no lease goes on without a look at the state": "the runner has ended by then"
    " all that ran by the lease before, and what was given away comes by the feed as well: it takes"
    " a job that is ordered before that",
    "begins its log behind a copy that is not in place yet": "the process has to end within the one"
    " write with which the log begins anew, and that write has to be on disk all the same",
}
