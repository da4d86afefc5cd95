"""The job queue dialect: translation between its documented words and the swarm's operations."""
