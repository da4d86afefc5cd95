"""Bugs planted in leases: each lets one job run in two places, or lose its place for nothing."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MOVING = ("tests/sim/test_leases.py",)
ASKING = ("tests/unit/test_agent_leases.py",)
GIVING = ("tests/unit/test_control_leases.py",)
RULES = ("tests/unit/test_state_leases.py",)
ATTEMPTS = ("tests/drivers/test_attempts.py",)
RUNNER = ("tests/drivers/test_runner_leases.py",)

NODE = "swarmd/agent/leases.py"
ORDERS = "swarmd/agent/launch.py"
LEADER = "swarmd/control/leases.py"
MACHINE = "swarmd/state/rules/leases.py"
PROCESS = "swarmd/runner/core.py"

MUTANTS = (
    Mutant(
        "a lease counts from its answer, not from when it was asked for", NODE,
        "            await self._go_by(lease, asked_ns)\n",
        "            await self._go_by(lease, self._runner.boottime_ns())\n", ASKING,
    ),
    Mutant(
        "a new leader gives work away without having waited", LEADER,
        "        self._began = trio.current_time()\n        self._heard: dict",
        "        self._began = -math.inf\n        self._heard: dict", (*GIVING, *MOVING),
    ),
    Mutant(
        "a hold is ignored", LEADER,
        "        if hold is None:\n            return end\n", "        return end\n",
        (*GIVING, *MOVING),
    ),
    Mutant(
        "a leader grants leases without a quorum's word", LEADER,
        "            at = await self._cluster.vouched(at_once=not self.present(node_id))\n",
        "            at = self._members_at + 1\n", (*GIVING, *MOVING),
    ),
    Mutant(
        "a lease is granted while work of the node is being given away", LEADER,
        "            while node_id in self._taking:\n", "            while False:\n", GIVING,
    ),
    Mutant(
        "a lease is granted between two takings", LEADER,
        "        self._taking.update(taken.lost)\n"
        "        for node_id, attempts in (doubtful | taken.lost).items():\n",
        "        for node_id, attempts in (doubtful | taken.lost).items():\n"
        "            self._taking.add(node_id)\n", GIVING,
    ),
    Mutant(
        "a node that had no lease goes on without a look at the state", NODE,
        "        if self._looked:\n", "        if True:\n", ASKING,
    ),
    Mutant(
        "a lease begins anew where work begins", ORDERS,
        "        lease_from_ns=lease_from_ns,\n", "", ATTEMPTS,
    ),
    Mutant(
        "a hold ends before what runs by it is cut short", NODE,
        "        if await self._tell() and self._hold != 0",
        "        await self._tell()\n        if self._hold != 0", ASKING,
    ),
    Mutant(
        "alone without end, and nobody can know of it", NODE,
        "                if lease.alone:\n                    await self._be_alone()\n",
        "                if lease.alone:\n                    self._hold = None\n",
        (*ASKING, *MOVING),
    ),
    Mutant(
        "disconnect_s is waited for by nobody", LEADER,
        "            due = ends[node_id] + (duty.spec.disconnect_s or 0.0)\n",
        "            due = ends[node_id]\n", (*GIVING, *MOVING),
    ),
    Mutant(
        "new work goes to hosts that are silent", LEADER,
        "        return heard is not None and trio.current_time() - heard < PRESENT_S\n",
        "        return True\n", MOVING,
    ),
    Mutant(
        "work is taken from a node whose hold nobody had seen", MACHINE,
        "    if (0 if row is None else row[0]) != command.hold:\n        return 0\n", "", RULES,
    ),
    Mutant(
        "a long grace outlasts the lease", PROCESS,
        "grace_ms = min(attempt.order.grace_ms, LEASE_GRACE_MS)",
        "grace_ms = attempt.order.grace_ms", RUNNER,
    ),
    Mutant(
        "what waits for a place outlives its lease", PROCESS,
        "            self._expire_waiting(now_ns)\n", "            pass\n", RUNNER,
    ),
)  # fmt: skip
