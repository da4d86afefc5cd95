"""Histories of real daemons: what clients asked of any node, what they were told, and when."""
