"""The command line: every command is a thin client of the daemon, except those that start one."""
