"""Every bound of mpifs with one line saying why it has this value."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# Names and sizes, as Linux has them.
NAME_BYTES_MAX = 255  # NAME_MAX of limits.h; also keeps a dentry key under LMDB's 511 bytes.
PATH_BYTES_MAX = 4096  # PATH_MAX with its final NUL.
LINKS_MAX = 2**31 - 1  # st_nlink is 32 bits wide at the FUSE interface.
FILE_BYTES_MAX = 2**63 - 1  # off_t.
SYMLINK_BYTES_MAX = 4095  # PATH_MAX without its final NUL.
XATTR_NAME_BYTES_MAX = 255  # XATTR_NAME_MAX.
XATTR_VALUE_BYTES_MAX = 64 * KIB  # XATTR_SIZE_MAX.
XATTR_LIST_BYTES_MAX = 64 * KIB  # XATTR_LIST_MAX: what listxattr(2) can return.

# Geometry.
CHUNK_BYTES_MIN = 4 * KIB  # one page; below it the 64-byte header would dominate.
CHUNK_BYTES_MAX = 64 * MIB  # one chunk must fit comfortably in every rank's buffers.
CHUNK_BYTES_DEFAULT = 1 * MIB  # one FUSE request of libfuse 3, the bandwidth knee of MPI and LMDB.
WORKERS_DEFAULT = 4
STORES_MAX = 65535  # a store id is 16 bits wide in a chunk ref.
REPLICAS_MAX = 8  # more copies than this is a misunderstanding, and a ref must stay small.

# Messages between ranks.
HEADER_BYTES = 64
ARGS_BYTES_MAX = 64 * KIB  # control messages (tables of stores, listings) stay below it.
INLINE_BYTES_MAX = 16 * KIB  # bodies up to here travel in the header message: one message less.
BODY_BYTES_MAX = CHUNK_BYTES_MAX + MIB  # a chunk with its header, or a batch; else it is refused.
BATCH_BYTES_MAX = 4 * MIB  # small chunks packed into one PUT: amortises the round trip.
FLUSH_COUNT = 256  # chunks of small files handed over at once: more would leave the workers idle.
BATCH_COUNT_MAX = 1024  # chunks in one PUT or keys in one DELETE.
SLOT_COUNT_MAX = 4096  # requests under way at once from one rank; tags stay far below MPI_TAG_UB.

# Deadlines in seconds.
REQUEST_TIMEOUT_S = 30.0  # an fdatasync on a congested disk takes seconds; deaths show earlier.
START_TIMEOUT_S = 30.0  # from mpiexec to a mount that answers.
STOP_TIMEOUT_S = 20.0  # flush and commit at unmount get REQUEST_TIMEOUT_S each before this counts.
FINALIZE_TIMEOUT_S = 5.0  # MPI_Finalize can hang after a death (PITFALLS 9); then os._exit.
INVALIDATE_TIMEOUT_S = 5.0  # the kernel drops what it has cached; it may have to write first.
JOIN_TIMEOUT_S = 8.0  # a new rank is there in 1.2 s, in 3 on a busy machine; else it died starting.
WORKER_SILENT_S = 5.0  # without an answer to a ping for so long a worker is called silent,
WORKER_HUNG_S = 10.0  # and after this it is treated as dead; a congested disk stalls no ping.
RESTARTS_MAX = 3  # of one worker that failed within
RESTARTS_S = 60.0  # this time: then it is given up until the next mount.
RESTART_BACKOFF_S = 0.25  # before a second try, doubled for each further one.
RECOVERY_S = 60.0  # a read or a write waits so long for a dead worker to be replaced: 3 restarts.
PARKED_LOOK_S = 0.25  # a chunk that no worker takes is tried again after this.
MASTER_SILENCE_S = 12.0  # a worker that hears nothing from rank 0 for so long ends itself,
ENDING_SILENCE_S = 3.0  # and after this when its launcher is ending the job; 3 heartbeats.
HEARTBEAT_S = 1.0
PING_LOOK_S = 0.25  # a round of pings ends then; who has not answered is asked no second time.
PINGS_MAX = 1024  # answers waited for together: polling more takes longer than the wait.
HELLO_TIMEOUT_S = 15.0  # half of START_TIMEOUT_S: the rest is for opening the stores.
STATS_TIMEOUT_S = 2.0  # a status that is late is worth nothing.
HOST_SILENCE_S = 8.0  # no answer from any worker of another host: the host is gone.  Before
# WORKER_HUNG_S, because a replacement cannot be started there; 15 s are for all until it is clean.
SPAWN_HOLD_S = 3.0  # so long at most a spawn, 1.2 s as a rule, holds up what is sent over TCP.
MPI_STALL_S = 9.0  # a heartbeat that takes longer hangs in MPI; before MASTER_SILENCE_S.
IDLE_LOOK_S = 60.0  # who waits for work looks by himself this often: a lost wake-up costs that.
UNMOUNT_RETRY_S = 0.05  # a busy mount is tried again so often while it has grace,
UNMOUNT_LAZY_S = 1.0  # its users may finish for so long once it is detached,
UNMOUNT_ABORT_S = 2.0  # and the session's threads have so long once they were cut off.
FUSERMOUNT_TIMEOUT_S = 10.0  # it answers at once, unless the kernel waits for a dead server.
UNUSED_JOB_S = 10.0  # a job without a mount whose command was killed ends itself after this.
REFUSED_BODY_S = 1.0  # a refused request's long body may never be taken; then its slot is lost.
GARBLED_TRIES = 3  # a message damaged on its way is sent so often in all; more is no accident.

# Restarting a volume that has crashed (-o restart=N).
JOB_RESTARTS_MAX = 1000  # more is a loop that hides a fault.
JOB_RESTART_WAIT_S = 1.0  # before the second restart in a row, doubled for each more,
JOB_RESTART_WAIT_MAX_S = 30.0  # and never longer than this: a host takes minutes to boot.
JOB_RESTART_SETTLED_S = 60.0  # served for so long, the next crash is the first in a row again.
HOST_PROBE_S = 5.0  # a host that has not run a command by then is left out of the restart.

# Threads that receive FUSE requests.
LEADER_LOOK_S = 0.003  # a request that takes longer has another thread receive the next one:
LEADER_STALL_S = 0.002  # when two take longer than this, and with requests of BULK_BYTES and more,
LEADER_WIDE_S = 0.5  # all threads receive for so long.
FUSE_SPIN_S = 100e-6  # the next request of a busy program comes sooner; to be woken takes 30 µs.
LATENCY_LOOK_S = 0.05  # of -o lowlatency: so often it is judged whether
LATENCY_RATE_MIN = 1000  # so many requests come in a second.
BULK_BYTES = 128 * KIB  # of a read or write: from here on its copies cost more than Python.

# Polling.
SPIN_S = 100e-6  # spin this long after traffic: a round trip takes 7-30 µs, a sleep costs 60.
BELL_TIMEOUT_S = 0.05  # a lost doorbell costs at most this, and in a service loop that has been
BELL_QUIET_TIMEOUT_S = 0.5  # quiet for longer twice that quiet, at most this.  A wake-up for
# nothing takes 0.1 to 0.2 ms: 20 a second in each of four workers were 1.2 to 2.4 % of a core.
NO_BELL_SLEEP_S = 0.0005  # peer on another host without a bell: poll at this interval when idle.
NO_BELL_QUIET_S = 1.0  # without traffic for so long, a rank far from its peers sleeps longer:
NO_BELL_QUIET_SLEEP_S = 0.005  # the idle CPU stays under 0.5 % of a core.
SEND_PROGRESS_S = 0.0003  # while own long messages are under way nobody sleeps longer than this.
SERVER_BUFFER_BYTES = 32 * MIB  # kept for reuse by a worker: what one group commit takes.
SERVER_BATCH_COUNT = 32  # requests a service loop takes before it looks at its sends again.
RECEIVES_MAX = 64  # request bodies a service loop receives at once.
RECEIVE_BYTES_MAX = 256 * MIB  # unanswered request bodies in a service; more wait outside.

# Memory of rank 0.
DIRTY_BYTES_MAX = 64 * MIB  # write-back buffers, in flight included; writers wait above it.
CACHE_BYTES_MAX = 64 * MIB  # clean chunks for small reads and ahead; the kernel caches the rest.
INODE_CACHE_MAX = 50_000  # live inodes kept in memory, about 550 B each; another costs 10 µs,
DENTRY_CACHE_MAX = 60_000  # and (parent, name) pairs, about 300 B each: 45 MiB in all.
COMPLETE_DIRECTORIES_MAX = 10_000  # known with all their names, about 60 B each, and
COMPLETED_ENTRIES_MAX = 2048  # the largest that are read for it: 5 ms in which others wait.
INDEX_RESIDENT_BYTES_MAX = 32 * MIB  # pages of the index mapped since they were last given back.
HEAP_TRIM_BYTES = 32 * MIB  # own memory more than after the last trim: what is free of it goes.
HEAPS_MAX = 1  # malloc has huge pages in the first one alone; more keep more free memory.
MEMORY_LOOK_S = 0.25  # how often that is looked at: a check reads 100 MiB of the index meanwhile.
HANDLES_MAX = 1_000_000  # open files; the kernel's own file-max is lower on most machines.

# Write-back and commit.
COMMIT_INTERVAL_S = 0.1  # -o commit=: a closed file survives the death of every rank after this.
COMMIT_INTERVAL_MAX_S = 60.0  # more would make the promise of close worthless.
MEMORY_BYTES_MIN = 8 * MIB  # of -o dirty= and cache=: below it a few chunks fill the buffers.
SETTLE_LOOK_S = 0.02  # the end of a write is told only when nothing at all is on its way.
CLEAN_REST_S = 0.03  # garbage waits until no name has changed for so long,
CLEAN_DELAY_MAX_S = 1.0  # but no longer than this.
CLEAN_ROUNDS_MAX = 64  # batches of garbage per tick, so that one tick stays short.
READ_TRIES = 4  # a chunk rewritten or moved while it is read has another ref; it is looked up anew.
READAHEAD_QUEUE_MAX = 256  # chunks asked for ahead; older wishes are dropped for newer ones.
DIRTY_AGE_MAX_S = 1.0  # an open file's dirty chunk is flushed after this at the latest.
INFLIGHT_COUNT_MAX = 256  # PUTs on their way at once, over all workers,
INFLIGHT_BYTES_MAX = 48 * MIB  # and their bytes: workers commit larger groups, syncs are shared.
PACKED_BYTES_MAX = 256 * KIB  # chunks up to here are copied together into one PUT per store.
PART_BLOCK_BYTES = 16 * KIB  # summed alone, so that a part of a chunk can be checked: 2 µs.
PART_READ_BYTES_MAX = 64 * KIB  # a longer read takes whole chunks: half of one costs the same.
PART_CHUNK_BYTES_MIN = 128 * KIB  # smaller chunks come whole: there is little to save.
PART_CHUNK_BYTES_MAX = 4 * MIB  # a worker's loop sums a chunk that has no table: 0.5 ms.
PART_TABLED_BYTES_MAX = 2 * MIB  # up to here a chunk's table fits into the last of its pages.
PART_TABLE_BYTES_MAX = 16 * MIB  # sums of blocks kept by rank 0: those of 12 GiB of chunks.
PART_PLACES_MAX = 16_384  # chunks whose places a worker remembers, about 150 B each.
LOCAL_PLACES_MAX = 65_536  # the same of rank 0, for all stores on its host, about 190 B each.
PART_WINDOW_COUNT = 256  # reads of parts over which it is judged which chunks are hot,
PART_HOT_COUNT = 8  # by so many of one chunk at least: they cost as much as all of it.
SMALL_FILE_BYTES_MAX = 64 * KIB  # files up to here are fetched ahead, many with one request:
SMALL_AHEAD_COUNT = 64  # the next names of a folder that is read in name order,
SMALL_AHEAD_BYTES = MIB  # and about so many bytes;
SMALL_AHEAD_FOLDERS = 64  # in so many folders at once.
READAHEAD_BYTES_MAX = 4 * MIB  # fetched ahead of one sequential reader, at least one chunk,
READAHEAD_CHUNKS_MAX = 64  # and at most so many.
READAHEAD_THREADS = 4  # fetches ahead at once, one per worker of a small volume.

# Group commit of a store.
COMMIT_OPERATIONS_MAX = 64  # puts and deletes taken into one LMDB transaction.
STREAM_BYTES_MIN = 2 * MIB  # a group of so much is part of a stream: for the next group
STREAM_GROUP_BYTES = 6 * MIB  # so much is waited for (half of what is under way to one of four),
STREAM_WAIT_S = 0.003  # but no longer than the commit of a stream's group takes.
COMMIT_BYTES_MAX = 32 * MIB  # dirty pages of one transaction are malloced by LMDB.

# Control socket.
CONTROL_FRAME_BYTES_MAX = 8 * MIB  # a page of a listing or of a layout is far below it.
CONTROL_CLIENTS_MAX = 32  # threads of rank 0 for commands; more is a runaway script.
CONTROL_HANDLES_MAX = 1024  # open files of one client, as the usual limit of open files.
CONTROL_TIMEOUT_S = 60.0  # two REQUEST_TIMEOUT_S: a call may wait for a flush and a commit.
CONTROL_FRAME_TIMEOUT_S = 30.0  # a client that stops in the middle of a frame is dropped.
COMMAND_POLL_S = 0.1  # how soon a waiting command notices that its turn has come.
STATUS_TIMEOUT_S = 10.0  # a status waits for STATS_TIMEOUT_S and little else.
COMMAND_TURN_S = 60.0  # a command waits so long for another one's job on an unmounted volume.
PIECE_BYTES = MIB  # file bytes of one read or write of a command: the knee of the socket's rate.
PAGE_ENTRIES = 1024  # rows of a listing or a layout in one answer, about 350 KiB at most.
SYMLINKS_MAX = 40  # links followed in one path, as Linux does (MAXSYMLINKS).

# Verify and repair, and its client.
FSCK_QUEUE_COUNT_MAX = 1024  # findings not yet read by the client: the checks wait above it.
FSCK_PAGE_COUNT = 256  # findings in one answer: at most 2.5 MiB, far below a frame.
FSCK_SILENCE_S = 600.0  # a client that reads nothing for so long (a pager) has lost its run.
FSCK_LOOK_S = 0.25  # how soon a cancelled run notices while it waits.
FSCK_FAREWELL_S = 1.0  # a stopping rank 0 lets the client hear so long that its run was ended.
FSCK_POLL_S = 0.25  # a poll waits so long for news: how soon Ctrl-C and the bar are served.
FSCK_CANCEL_S = 15.0  # from Ctrl-C to the end of the checks; half a request's deadline.
SCRUB_RATE_BYTES = 32 * MIB  # a second, over all workers: a tenth of a slow disk's rate each.
SCRUB_WRITE_S = 5.0  # how much of a scrub's work a crash of rank 0 repeats.
SCRUB_STAND_ASIDE_S = 0.5  # a scrub that made room for a check looks this often whether it is over.
SCRUB_AFTER_ERROR_S = 30.0  # a worker that is away for a while must not fill the log.
SCRUB_JOIN_S = 15.0  # the end of its step at a stop: half a request's deadline.
SCRUB_FINDINGS_MAX = 1000  # findings kept for `scrub status`; more are counted and logged.

# Copies of the index on the workers, and its recovery.
INDEX_COPIES = 2  # stores that hold the newest copy: one disk may be lost together with the index.
INDEX_COPY_PIECE_BYTES = MIB  # of a copy in one chunk image: the knee of LMDB and of the network.
INDEX_COPY_PIECES_MAX = 65_000  # their sums fit into one manifest piece: an index of 63 GiB.
INDEX_COPY_PIECES_IN_FLIGHT = 4  # pieces in memory of rank 0 while a copy is written or read.
INDEX_COPY_INTERVAL_S = 60.0  # a mounted volume's copy is that old at most, unless it is huge:
INDEX_COPY_REST = 20  # a copy that took a second rests this many: 5 % of the time at most.
INDEX_COPY_RATE_BYTES = 64 * MIB  # a second, while mounted: leaves the disks to the user's data.
INDEX_COPY_TIMEOUT_S = 3600.0  # at rest nobody waits but the user who asked for the repair.
RESTORE_NUMBER_GAP = 2**32  # skipped numbers: what was used after the copy was made is below it.
REBUILD_BATCH_BYTES = 16 * MIB  # rows of one transaction of an index that is made anew.

# Checks of the index.
PLANNED_ROWS_MAX = 100_000  # rows of planned repairs held in memory, about 50 MB; see Snapshot.
PLANNED_TALLIES_MAX = 10_000  # directories whose entries are counted for a planned repair.
CENSUS_INODES_MAX = 2**21  # inodes whose names are counted at once, 17 B each in arrays.
CENSUS_FAULTS_MAX = 100_000  # faults of one kind kept from reading all entries, about 30 MB.
MENDED_KEPT_MAX = 50_000  # damaged rows whose findings wait for all corrections, about 30 MB.
PATH_DEPTH_MAX = 4096  # directories above a finding's place; deeper ones are shown from there on.
PATH_NAMES_MAX = 100_000  # names kept of inodes whose record tells none, about 25 MB.

# Checks of the chunks.
CHECK_READ_BYTES = 32 * MIB  # summed by one VERIFY: 3 s on a disk of 10 MiB/s, far from a deadline,
CHECK_READ_COUNT = 8192  # and at most so many reports: 600 KiB.
CHECK_AHEAD_COUNT = 4  # VERIFY answers waiting per store: a slow store does not stop the others.
CHECK_PACED_BYTES = 8 * MIB  # summed by one VERIFY at a bounded rate: a burst of a quarter second.
CHECK_TIMEOUT_S = 2 * REQUEST_TIMEOUT_S  # a VERIFY waits behind others in a worker's thread.
CHECK_REQUESTS_MAX = 32  # places looked at anew at once; half of what a worker lets wait.
SUSPECTS_MAX = 4096  # places judged together once the stores are settled, about 8 MiB.
FACTS_MAX = 65_536  # damaged or missing refs remembered in a run; what is over comes in the next.
MEND_COUNT_MAX = 512  # items of one MEND: its arguments stay below ARGS_BYTES_MAX.
HEAL_BYTES_MAX = 16 * MIB  # images on their way from store to store at once, and
HEAL_COUNT_MAX = 256  # refs changed by one commit of the index then.
MOVE_SCAN_COUNT = 8192  # refs looked at in one snapshot while moves are planned: about 20 ms.
MOVE_BATCH_BYTES = 256 * MIB  # moved between two graces of MOVED_GRACE_S: one hundredth of the time
MOVE_BATCH_COUNT = 4096  # at 10 MiB/s; and so many chunks, 8 MiB of plans.
RETIRE_TIMEOUT_S = 4 * REQUEST_TIMEOUT_S  # removing files of terabytes takes a disk so long.
STORES_ADDED_MAX = 64  # new ranks of one command: each takes a second or two to start.
STORES_POLL_S = 0.5  # how often a command that waits for a store to be filled or emptied looks.
HEAL_DELAY_S = 3.0  # from a loss to its healing: several disks of one box go one after the other.
HEAL_LOOK_S = 0.5  # how soon a loss is seen.
HEAL_JOIN_S = 15.0  # the end of its step at a stop, as SCRUB_JOIN_S.
HEAL_RETRY_S = 60.0  # what could not be healed is looked at again so often.
HEAL_REST = 2.0  # healing rests so many times as long as it worked while the volume is used,
HEAL_REST_MAX_S = 5.0  # and after one slow step at most so long.
MOVED_GRACE_S = 0.25  # between a ref's change and the end of the copy it named: reads take ms.
MEND_QUEUE_COUNT_MAX = 1024  # damaged images that readers found and nobody has mended yet.
MEND_TURN_S = 5.0  # mending waits so long for a scrub to stand aside; then it looks again.
MEND_AGAIN_S = 60.0  # what could not be mended is not tried again for so long.
ROUNDS_MAX = 8  # repairs of a phase are repeated until nothing is left; each round mends most.
HELD_FINDINGS_MAX = 10_000  # not repaired in a round: told once it is known that none will be.

# Reserved ranges of numbers that must never be reused, committed ahead of their use.
NUMBER_RESERVE = 2**20

# Work of one call of the index on huge files.
DROP_COUNT_MAX = 4096  # refs dropped with the index's lock held: about 10 ms.

# LMDB.
MAP_BYTES = 1 << 44  # 16 TiB of address space, costs nothing until used; set once.
MAP_BYTES_SMALL = 64 * MIB  # at first where the address space is limited (ulimit -v); it doubles,
MAP_GROWTH_BYTES_MAX = GIB  # but by no more than this at a time,
WRITER_WAIT_S = 60.0  # for the write transaction of another thread: one commit on a bad disk.
MAP_GROWTH_WAIT_S = 1.0  # once no read transaction is open: writers wait so long for that.
ADDRESS_SPACE_MIN = 4 * GIB  # of a rank: MPI, threads and small maps take 1.5 GiB of it.
PREALLOCATE_BYTES = 64 * MIB  # growing a file costs 4 x writing into allocated blocks.
SMALL_VALUE_BYTES_MAX = 32 * KIB  # payloads up to here live in the environment for small chunks.
SPACE_RESERVE_BYTES = 64 * MIB  # kept free on a store's disk, at most a sixteenth of it: deleting
RESERVE_SHARE = 16  # needs room, too, and half of it is for what replaces older chunks.
CAPACITY_BYTES_MIN = 16 * MIB  # of a store: below it the reserve would be a few chunks.
INDEX_RESERVE_BYTES = 32 * MIB  # the same on the index's disk; more than one commit needs.
INDEX_ROW_BYTES = 1536  # what a new name takes of the index, with pages copied on the way,
INDEX_PAGE_BYTES = 4096 + 64  # a row's page and its share of what is above it,
INDEX_ROWS_PER_PAGE = 32  # or more, where short rows follow each other;
INDEX_REF_BYTES = 256  # and a chunk's ref.
KV_READERS_MAX = 4096  # read transactions open at once in one environment; 64 B each.
KV_SPARE_TRANSACTIONS = 16  # ended read transactions that LMDB keeps for reuse.
TREE_PROBLEMS_MAX = 1000  # sentences about one data file: a cut one could give millions.
TREE_CHECK_PAGES_MAX = 8192  # pages checked when an environment is opened: 0.15 s in memory,
TREE_CHECK_S = 1.0  # and from a disk that must seek for each at most so long.
KV_SLACK_BYTES = MIB  # allocated behind the last used page, so that deletes work on a full disk.

# A worker's service.
WRITE_QUEUE_BYTES_MAX = 256 * MIB  # four times DIRTY_BYTES_MAX: only a runaway client meets it.
WRITE_QUEUE_COUNT_MAX = 4096  # requests waiting for a commit; SLOT_COUNT_MAX of one client.
LEASES_MAX = 256  # replies sent straight from LMDB's pages at once; more are copied first.
COLD_QUIET_S = 1.0  # without a get for so long, a store's pages may have left the memory.
LEASE_CLOSE_S = 5.0  # a closing store waits so long for replies that still use its pages.
LIST_COUNT_MAX = 16_384  # image headers in one LIST reply: 1 MiB.
VERIFY_COUNT_MAX = 16_384  # chunk reports in one VERIFY reply: 1.1 MiB.
VERIFY_READ_BYTES = 64 * MIB  # summed under one read transaction, which keeps freed pages unused,
VERIFY_READ_S = 0.2  # and for so long at most.
MEND_BYTES_MAX = 64 * MIB  # rewritten by one transaction: LMDB holds its pages in memory.
COPIES_MAX = 16  # COPY requests that wait for a worker's thread for them; rank 0 sends 2 at once.
COPY_COUNT_MAX = 256  # chunks in one COPY: arguments of 15 KiB, its refusals of 50 KiB.
COPY_BYTES_MAX = 16 * MIB  # chunks of one COPY in the target's memory, or a single larger one.
COPY_FETCHES = 4  # GETs that a target has under way: hides the round trips, leaves others theirs.
COPY_TIMEOUT_S = 2 * REQUEST_TIMEOUT_S  # rank 0 waits so long for a COPY,
COPY_WORK_S = 45.0  # and the target gives up what is left after so long, to answer in time.
COPY_DETAIL_MAX = 150  # characters of a refused item's sentence: COPY_COUNT_MAX of them fit.
COPY_QUEUE_LOOK_S = 0.02  # how soon a full write queue is tried again.
STORE_LOOK_S = 1.0  # a worker looks so often whether its store's files are still its own.
CHECKUPS_MAX = 64  # VERIFY, INSPECT and REBUILD requests that wait for a worker's thread for them.
PROBLEMS_MAX = 100  # problems of one file told in an INSPECT reply; the rest is only counted.

# The benchmark (`mpifs bench`).
BENCH_START_S = 60.0  # the null file system and the ranks of the MPI limit start in 1-2 s.
BENCH_WORK_S = 1800.0  # one workload of one process: 16 GiB at 10 MiB/s.
BENCH_END_S = 5.0  # a helper process ends at the end of its input at once; then it is killed.
BENCH_BUSY_S = 3.0  # an indexer or a shell that looks into the run's own mount soon leaves it.
BENCH_SIZE_MIN = 8 * MIB  # of the large file: below it there is less than a chunk per reader.
BENCH_DRIVERS_MAX = 64  # processes that work at once; more workers than that share them.

# Transfers between ranks' local disks.
TRANSFER_CHUNK_BYTES = MIB  # what travels at once, and again after a kill: the knee of MPI's rate.
TRANSFER_CHUNKS_MAX = 2**20  # of one file with chunks of that size; a longer one has longer chunks,
TRANSFER_CHUNKS_LIMIT = 2**22  # and a file of so many chunks of 64 MiB (256 TiB) is refused.
TRANSFER_WINDOW = 4  # chunks read ahead and written behind by one transfer: hides the round trips.
TRANSFER_SUM_BYTES = 64 * MIB  # summed by one request: 6 s on a disk of 10 MiB/s,
TRANSFER_SUM_COUNT = 4096  # and at most so many chunks: 64 KiB of sums.
TRANSFER_SMALL_BYTES = 256 * KIB  # files up to here travel many at once, in packs of
TRANSFER_PACK_BYTES = 4 * MIB  # about so many bytes
TRANSFER_PACK_COUNT = 256  # and so many files: their facts stay far below a body.
TRANSFER_LIST_COUNT = 8192  # entries of a folder in one answer, about 1 MiB.
TRANSFER_TIMEOUT_S = 120.0  # a pack of files, each synced on a bad disk; deaths show earlier.
TRANSFER_THREADS = 4  # of a worker for requests that read and write local files.
TRANSFER_QUEUE_MAX = 1024  # requests that wait for them: 64 transfers with full windows fit.
TRANSFER_RECEIVING_MAX = 256  # files being received at once by a rank, a descriptor each.
TRANSFER_RECEIVING_S = 600.0  # one that nobody has asked for since is closed; its part stays.
TRANSFER_PULLS_MAX = 32  # pulls of one worker at once, a thread each.
TRANSFER_PULLS_KEPT = 256  # pulls that have ended whose report may still be asked for.
TRANSFER_LOOK_S = 0.25  # how soon a transfer that is cancelled stops waiting for another rank.
TRANSFER_POLL_S = 0.1  # rank 0 asks so often how far a pull is.
TRANSFER_AT_ONCE = 8  # of one command: a thread of rank 0 and 8 MiB of its memory each.
TRANSFER_ROWS_TOLD = 64  # transfers under way in one answer: more bars fit no terminal.
TRANSFER_ROWS_MAX = 10_000  # files × ranks of one command; more go as a folder.
TRANSFER_ERRORS_MAX = 1000  # sentences kept of one transfer; more are counted.
TRANSFER_ERRORS_TOLD = 50  # of them in one answer to PULL_POLL: below ARGS_BYTES_MAX.
TRANSFER_NEWS_MAX = 20_000  # lines of a command that its client has not read yet; more are lost.
TRANSFER_LINES_MAX = 32  # chunks named one by one in the lines of a scatter to one worker.
TRANSFER_JOIN_S = 10.0  # the end of a cancelled command's threads at a stop.
FOLDER_DEPTH_MAX = 1024  # nested local folders; PATH_MAX allows 2048 of one letter each.

# A volume for the length of a command (`mpifs run`).
RUN_LOOK_S = 0.5  # how soon the loss of the volume is seen that no signal tells.
RUN_GRACE_S = 4.0  # from SIGTERM to SIGKILL of the command: of the 10 s in which all must be gone
RUN_LEFT_GRACE_S = 2.0  # this is for what it left running, the rest for unmount and the ranks' end.

# Watching a volume (`status --watch`, `metrics`, `profile`).
FIGURES_BUCKETS = 25  # times by powers of two of a microsecond: the last one begins at 8 s,
# and what takes longer than REQUEST_TIMEOUT_S fails.
FIGURES_PERIOD = 4  # of quick requests one in so many is timed: 1 % of a stat(2) instead of 4.
FIGURES_QUICK_S = 0.0001  # quick is less than this; what goes to a disk or a worker is all timed.
FIGURES_SLOW_PLACE = 16  # a request of 33 ms or more is kept by itself: rare on a healthy volume.
FIGURES_SLOW_MAX = 64  # of them for each thread: a screen of them.
WATCH_S = 1.0  # between two looks of `status --watch`.

# Stage-in and stage-out.
STAGE_COUNT_MAX = 256  # parts of files in one order: one round trip for so many small files.
STAGE_BYTES_MAX = 8 * MIB  # of file bytes in one order, or a single larger chunk.
STAGE_ORDERS_MAX = 4  # orders under way at one worker: one is read while others become durable,
STAGE_ORDER_BYTES_MAX = 32 * MIB  # and their bytes, which are in the worker's memory.
STAGE_QUEUED_MAX = 64  # orders that wait in rank 0 for a dead worker before the walk waits, too.
STAGE_THREADS = 2  # of a worker, an order each: hides the latency of a remote file system's opens.
STAGE_QUEUE_MAX = 64  # orders that wait for a worker's threads: 16 commands' worth.
STAGE_TIMEOUT_S = 120.0  # rank 0 waits so long for an order: a congested file system is slow,
STAGE_WORK_S = 90.0  # and a worker gives up what is left after so long, to answer in time.
STAGE_DETAIL_MAX = 200  # characters of a refused part's sentence.
STAGE_SENT_BYTES_MAX = 16 * MIB  # read by rank 0 itself for workers that do not see a source.
STAGE_PARTIAL_BYTES = 32 * MIB  # from this size on an unfinished file is kept and goes on later.
STAGE_FULL_LOOK_S = 2.0  # on a full volume removed files are waited for once in so long.
STAGE_FAILURES_MAX = 1000  # failures kept with their sentences; more are only counted.
STAGE_RUNS_MAX = 4  # commands at once on one volume: each has a thread of rank 0.
STAGE_POLL_S = 0.2  # how soon the command notices Ctrl-C and shows news.
STAGE_PAIRS_MAX = 1024  # lines of a manifest in one call: 8 MiB with the longest paths.
STAGE_SOURCES_MAX = 10_000_000  # lines of one manifest: about 2 GiB of rank 0's memory.
STAGE_TOLD_MAX = 16_384  # names the kernel is told of before a run waits until it has heard.
STAGE_SYNC_COUNT = 8  # files written by one order from which one syncfs is cheaper than fsyncs.
STAGE_LOOK_S = 0.1  # how soon a run that waits for workers notices that it is to end,
STAGE_ABANDON_S = 10.0  # and so long it waits then for what is under way.
