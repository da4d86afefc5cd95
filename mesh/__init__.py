"""How nodes agree and reach each other: Raft, its log, its wires. It imports nothing of ours."""
