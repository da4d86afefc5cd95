"""The handle through which everything above reaches the swarm: propose, read, watch, ask."""
