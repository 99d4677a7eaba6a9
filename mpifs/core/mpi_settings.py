"""What mpifs asks of Open MPI.

The launcher gives it to the ranks that it starts; a rank that another launcher has started takes it
before it starts the library.
"""

from __future__ import annotations

OPEN_MPI = {
    # A header message with 16 KiB of body and the block sums of a 1 MiB chunk goes at once; above
    # 4 KiB, its default, the receiver must answer before the rest comes: 10 % of a random read.
    "OMPI_MCA_btl_sm_eager_limit": "24576",
    # Its tests of a message do not give the processor away: mpifs's own loops do so, and sleep.
    "OMPI_MCA_mpi_yield_when_idle": "0",
    # All of its defaults but `put`: when a peer dies while a long message is put, the end of the
    # connection calls into itself with its lock held, and every later call of MPI waits for ever
    # (pml_ob1_sendreq.c, put_completion -> send_fin; seen at every tenth death of a replaced rank).
    "OMPI_MCA_btl_tcp_flags": "send,inplace,need-ack,need-csum,hetero-rdma",
}
"""By the names of the environment's variables; what the user has set stays."""
