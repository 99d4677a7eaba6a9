"""The chunk path: scatter (place, checksum, send), gather (fetch, verify, fall back), reclaim.

Knows keys, refs and stores; never touches the index.
"""
