"""What a message asks for, and on which tag it travels.  What each carries: doc/wire.md."""

from __future__ import annotations

from enum import IntEnum

TAG_CONTROL = 1
TAG_METADATA = 2


class Kind(IntEnum):
    """Kinds of requests.  Numbers are never reused.  Below 32: control tag; above: metadata tag."""

    HELLO = 1
    """Control: who are you?  → HelloReply."""
    SERVE = 2
    """Control: Serve (which store to open, or make) → StoreStats."""
    PING = 3
    """Control: empty → empty; the heartbeat."""
    STATS = 4
    """Control: empty → StoreStats."""
    STOP = 5
    """Control: commit, close the store, answer, leave the service loop."""
    SURVEY = 6
    """Control: empty → SurveyReply: every folder that looks like a store, good or bad."""
    INSPECT = 7
    """Control: Inspect → InspectReply: the files of a store as files, served or not."""
    REBUILD = 8
    """Control: Rebuild → RebuildReply: makes damaged files of a store that is not served anew from
    what can still be read.  Answered when it is done; PING goes on meanwhile."""
    RETIRE = 9
    """Control: Retire → empty: the store is closed and its files are removed; nothing needs it."""
    LOCAL = 16
    """Control: Local (where this rank's local files are) → LocalReply."""
    PULL = 17
    """Control: Pull in the body (fetch files from another rank) → PullNumber; it goes on alone."""
    PULL_POLL = 18
    """Control: PullNumber → TallyReport: how far it is."""
    PULL_CANCEL = 19
    """Control: PullNumber → empty; the pull ends at its next step."""
    PUT = 32
    """`items` chunk images in the body → empty, once durable."""
    GET = 33
    """One chunk key in the arguments → its image in the body."""
    DELETE = 34
    """Chunk keys in the arguments → empty, once durable; missing keys are no error."""
    LIST = 35
    """ListKeys → image headers in the body, in key order (each with 64 bytes)."""
    VERIFY = 36
    """VerifyKeys → VerifyReply, and chunk reports in the body, in key order (chunk_report.py)."""
    MEND = 37
    """Mend → MendReply: rewrites images whose payload is good, where it is; no payload travels."""
    COPY = 38
    """Copy → CopyReply: fetches chunks from another rank, checks them, stores them durably."""
    GET_PART = 39
    """GetPart → blocks of a chunk in the body; their chunk's table of sums in the arguments, if it
    was asked for."""
    GET_MANY = 40
    """Chunk keys → the images of those that are there, in the body, as PUT has them."""
    STAGE_IN = 41
    """StageOrder in the body: files of a file system that the asked rank sees itself; it reads,
    sums and stores these parts → StageReply in the body, once durable."""
    STAGE_OUT = 42
    """StageOutOrder in the body: chunks to be written into files that the asked rank sees itself,
    made durable, read back and compared → StageReply in the body."""
    LOOK = 48
    """PathAsk → Entry: a local file, folder or link."""
    LIST_FOLDER = 49
    """PathAsk → entries of a local folder in the body (ListReply)."""
    SUMS = 50
    """SumsAsk → checksums of chunks of a local file in the body, 16 bytes each."""
    READ = 51
    """ReadAsk → bytes of a local file in the body."""
    TAKE = 52
    """Take in the body → whole small local files, one behind the other in the body; TakeReply."""
    BEGIN = 53
    """Begin → BeginReply: a file is going to be received."""
    HAVE = 54
    """Have, checksums in the body → HaveReply: which of these chunks are there already."""
    WRITE = 55
    """Write, a chunk in the body → empty."""
    FINISH = 56
    """Number → empty: all is there and durable, the file has its name."""
    ABANDON = 57
    """Number → empty: it is not going on now; what has come stays as a partial file."""
    HAVE_SMALL = 58
    """SmallFiles in the body → HaveReply: which of these files are there already."""
    PUT_SMALL = 59
    """SmallFiles and their bytes in the body → Failures; the others are durable and named."""
    MAKE = 60
    """Make in the body → Failures: folders and links."""


def tag_of(kind: Kind) -> int:
    """Tag of a request's header message."""
    return TAG_CONTROL if kind < Kind.PUT else TAG_METADATA
