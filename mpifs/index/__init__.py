"""The master's metadata index in LMDB: group-committed, write-behind, one process."""
