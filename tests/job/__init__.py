"""Tests of the job: launcher, supervisor, lifecycle, hosts."""
