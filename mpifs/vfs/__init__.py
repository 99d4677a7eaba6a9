"""POSIX semantics over index and data; knows no FUSE."""
