"""The build swarm's API: Gentoo packages for drones that come for them, on port 8100."""
