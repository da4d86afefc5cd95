"""What the swarm answers: one package a dialect, and what they share in `common`."""
