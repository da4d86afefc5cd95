"""Transcripts replayed to the letter: etcd's, as SWARMD_CONFORMANCE names them, and our own."""
