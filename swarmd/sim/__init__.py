"""A swarm in a bottle: the real parts on a network, disks and clocks that are simulated."""
