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
FIVE = "a run of chaos has five hosts at the most, and five may vote"

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
    "as many vote as there are": FIVE,
    "a batch that is refused in part leaves its events behind": "no rule that clients of chaos come"
    " to tells of anything before it refuses",
    "a lease begins anew where work begins": RUNNER,
    "the dead of another's tale are dead at once": HINT,
    "new work goes to hosts that are silent": COSTS,
    "a voter that is gone is never replaced": "every host comes back before the end, so the voters"
    " are those again that were",
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
}
