"""How far one transfer is.  Written by the thread that moves, read by any; sums may be a moment
apart, which nobody minds."""

from __future__ import annotations

from mpifs.core.errors import MpifsError
from mpifs.core.limits import TRANSFER_ERRORS_MAX, TRANSFER_ERRORS_TOLD
from mpifs.core.transfer_messages import TallyReport


def cut(sentence: str, length: int) -> str:
    """Its first `length` bytes, so that an answer stays within its limit."""
    return sentence.encode("utf-8", "backslashreplace")[:length].decode("utf-8", "ignore")


class CancelledTransferError(MpifsError):
    """Whoever asked for the transfer wants it no more.  What has come stays as a partial file."""

    def __init__(self) -> None:
        super().__init__("interrupted; run the command again and it goes on")


class EndedTransferError(MpifsError):
    """A transfer cannot go on; why is in its tally already."""


class Tally:
    """See the module.  `cancel` makes the next `check` raise."""

    def __init__(self) -> None:
        self.files = 0
        """Files and links that have their names."""
        self.folders = 0
        self.bytes = 0
        """Of these files, and of the chunks of the one under way that are there."""
        self.total = 0
        """Bytes of what is known to be moved."""
        self.chunks = 0
        """Chunks of all files; a small file is one."""
        self.sent = 0
        """Chunks that have travelled."""
        self.sent_bytes = 0
        self.current = b""
        """The long file under way."""
        self.errors: list[tuple[bytes, str]] = []
        self.error_count = 0
        self.is_over = False
        self._is_cancelled = False

    def fail(self, path: bytes, error: OSError) -> None:
        """One file was not moved."""
        self.error_count += 1
        if len(self.errors) < TRANSFER_ERRORS_MAX:
            self.errors.append((path, " ".join(str(error).split())))

    def cancel(self) -> None:
        """Ends the transfer at its next step."""
        self._is_cancelled = True

    def check(self) -> None:
        """Raises CancelledTransferError."""
        if self._is_cancelled:
            raise CancelledTransferError

    def report(self, after: int) -> TallyReport:
        """The figures, and errors from number `after` on as far as they fit."""
        is_over = self.is_over  # before the rest: an end is told with all there is.
        found = self.errors[after : after + TRANSFER_ERRORS_TOLD]
        errors = [(path[:512], cut(sentence, 512)) for path, sentence in found]
        return TallyReport(
            self.files,
            self.folders,
            self.bytes,
            self.total,
            self.chunks,
            self.sent,
            self.sent_bytes,
            self.current,
            errors,
            self.error_count,
            is_over and after + len(errors) >= len(self.errors),
        )

    def take(self, report: TallyReport) -> None:
        """Becomes what another rank reports."""
        self.files, self.folders = report.files, report.folders
        self.bytes, self.total = report.size, report.total
        self.chunks, self.sent, self.sent_bytes = report.chunks, report.sent, report.sent_bytes
        self.current, self.error_count = report.current, report.error_count
        self.errors += report.errors
