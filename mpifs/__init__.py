"""mpifs: one mounted, checksummed file system made out of the local disks of an MPI job."""

__version__ = "0.1.0"
