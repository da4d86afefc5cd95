"""The words of the swarm. Nothing here knows time, I/O, storage or a dialect."""
