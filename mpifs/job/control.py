"""The control socket of rank 0: commands of the same user ask, rank 0 answers.

A Unix stream socket of mode 0600 in a folder of mode 0700; the kernel says who connects
(SO_PEERCRED), and only the owner of rank 0 and root are let in.  One thread per client, their
number bounded; a client that sends rubbish or stops in the middle of a frame loses its
connection, nothing else.  Handlers run in their client's thread, so they must be thread-safe.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mpifs.core.checksum import Buffer
from mpifs.core.errors import InUseError, MasterSilentError, PosixError, ProtocolError
from mpifs.core.limits import (
    CONTROL_CLIENTS_MAX,
    CONTROL_FRAME_TIMEOUT_S,
    CONTROL_TIMEOUT_S,
    PIECE_BYTES,
    STOP_TIMEOUT_S,
)
from mpifs.core.types import Caller
from mpifs.job.control_frames import (
    AnswerFrame,
    EndOfStreamError,
    FrameStream,
    RequestFrame,
    error_of,
    sentence_of,
)

log = logging.getLogger(__name__)
_CREDENTIALS = struct.Struct("3i")

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Session:
    """One client's connection, used by its own thread only.

    `buffer` is at least PIECE_BYTES long and free for the handler's answer; it also holds the
    raw bytes that came with the request.
    """

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.buffer = bytearray(PIECE_BYTES)
        self._undo: list[Callable[[], None]] = []

    def on_end(self, undo: Callable[[], None]) -> None:
        """`undo` is called once, in this session's thread, when the client has gone away."""
        self._undo.append(undo)

    def end(self) -> None:
        """Calls what on_end was given, last first; an error of one does not stop the others."""
        while self._undo:
            undo = self._undo.pop()
            try:
                undo()
            except OSError as error:
                log.warning("after a client of the control socket went away: %s", error)


class Answer(NamedTuple):
    """What a data handler answers; `body` must stay as it is until the handler's next call."""

    result: dict[str, Any]
    body: Buffer = b""


DataHandler = Callable[[Session, dict[str, Any], memoryview], Answer]


@contextlib.contextmanager
def _short_path(path: str) -> Iterator[str]:
    """A name of the socket `path` that fits the 108 bytes of sun_path, whatever its folder."""
    folder, name = os.path.split(os.path.abspath(path))
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def _connect(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        with _short_path(path) as short:
            connection.connect(short)
    except BaseException:
        connection.close()
        raise
    return connection


def _caller_of(connection: socket.socket) -> Caller:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return Caller(uid, gid, pid)


class ControlServer:
    """Listens at `path` between start() and close().

    `_clients` is guarded by `_lock`; handlers are registered before start() and then constant.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._handlers: dict[str, DataHandler] = {}
        self._listener: socket.socket | None = None
        self._identity = (0, 0)
        self._acceptor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, socket.socket] = {}
        self._closing = threading.Event()

    def register(self, name: str, handler: Handler) -> None:
        """`handler` answers the calls of `name`.  Its OSError goes to the client with its errno
        and sentence; any other exception is logged and goes there as EIO."""
        self.register_data(name, lambda session, args, body: Answer(handler(args)))

    def register_data(self, name: str, handler: DataHandler) -> None:
        """As register(), for a handler that knows its client and takes or gives raw bytes."""
        assert self._listener is None
        assert name not in self._handlers
        self._handlers[name] = handler

    def start(self) -> None:
        """Makes the socket and begins to answer.

        Raises InUseError when another process answers there; a socket left behind by a dead one
        is replaced.
        """
        folder = os.path.dirname(os.path.abspath(self.path))
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if stat.S_IMODE(os.stat(folder).st_mode) & 0o077:
            os.chmod(folder, 0o700)
        self._clear_leftover()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _short_path(self.path) as short:
                listener.bind(short)
            # Nobody can connect before listen(), so the wider mode of bind() is never used.
            os.chmod(self.path, 0o600)
            found = os.lstat(self.path)
            self._identity = (found.st_dev, found.st_ino)
            listener.listen(CONTROL_CLIENTS_MAX)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._acceptor = threading.Thread(target=self._accept, name="control", daemon=True)
        self._acceptor.start()

    @property
    def client_count(self) -> int:
        """How many clients are connected now."""
        with self._lock:
            return len(self._clients)

    def close(self) -> None:
        """Stops listening and removes the socket; calls under way get STOP_TIMEOUT_S to finish.

        May be repeated, and may be called by a handler.
        """
        self._closing.set()
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() would not.
        if self._acceptor is not None and self._acceptor is not threading.current_thread():
            self._acceptor.join(STOP_TIMEOUT_S)
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        with self._lock:
            clients = dict(self._clients)
        clients.pop(threading.current_thread(), None)
        for connection in clients.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # an answer under way still gets out.
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for thread, connection in clients.items():
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _clear_leftover(self) -> None:
        try:
            _connect(self.path, 1.0).close()
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(self.path)
            return
        except TimeoutError:
            pass
        raise InUseError(
            f"another process answers at {self.path}: the volume is in use; unmount it first"
        )

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None and not self._closing.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                log.warning("control socket: %s", error)
                time.sleep(0.1)  # EMFILE: a new try at once would only burn the processor.
                continue
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="control-client", daemon=True
            )
            with self._lock:
                is_full = len(self._clients) >= CONTROL_CLIENTS_MAX
                if not is_full:
                    self._clients[thread] = connection
            if is_full:
                self._refuse(connection, errno.EAGAIN, "too many commands at once; try again")
                continue
            try:
                thread.start()
            except RuntimeError as error:
                with self._lock:
                    del self._clients[thread]
                self._refuse(connection, errno.EAGAIN, f"no thread for another client ({error})")

    def _refuse(self, connection: socket.socket, code: int, message: str) -> None:
        with connection, contextlib.suppress(OSError):
            FrameStream(connection).send(
                AnswerFrame(errno=code, message=message), b"", time.monotonic() + 1.0
            )

    def _serve(self, connection: socket.socket) -> None:
        """One client's thread: a request, its answer, and again, until the client goes away."""
        session = Session(_caller_of(connection))
        stream = FrameStream(connection)
        try:
            if session.caller.uid not in (0, os.geteuid()):
                log.warning("control socket: user %d was refused", session.caller.uid)
                self._refuse(connection, errno.EACCES, "this volume belongs to another user")
                return
            while self._tick(session, stream):
                pass
        except ProtocolError as error:
            log.warning("control socket: %s", error)
            self._refuse(connection, errno.EPROTO, sentence_of(error))
        except (EndOfStreamError, ConnectionError):
            pass
        except OSError as error:
            log.warning("control socket: process %d: %s", session.caller.pid, error)
        finally:
            session.end()
            connection.close()
            with self._lock:
                self._clients.pop(threading.current_thread(), None)

    def _tick(self, session: Session, stream: FrameStream) -> bool:
        """Answers one request; False when the server is closing."""
        request = stream.receive(RequestFrame, None, CONTROL_FRAME_TIMEOUT_S)
        deadline_s = time.monotonic() + CONTROL_FRAME_TIMEOUT_S
        if request.body > len(session.buffer):
            session.buffer = bytearray(request.body)
        body = memoryview(session.buffer)[: request.body]
        stream.receive_into(body, deadline_s)
        frame, data = self._answer(session, request, body)
        stream.send(frame, data, time.monotonic() + CONTROL_FRAME_TIMEOUT_S)
        return not self._closing.is_set()

    def _answer(
        self, session: Session, request: RequestFrame, body: memoryview
    ) -> tuple[AnswerFrame, Buffer]:
        handler = self._handlers.get(request.name)
        if handler is None:
            message = f"this mpifs knows no call {request.name!r}; are both of one version?"
            return AnswerFrame(errno=errno.ENOSYS, message=message), b""
        try:
            answer = handler(session, request.args, body)
        except OSError as error:
            return AnswerFrame(errno=error.errno or errno.EIO, message=sentence_of(error)), b""
        except Exception:
            log.exception("control socket: the call %s failed", request.name)
            message = "an error inside mpifs; its log (STORE/run/mpifs.log) says more"
            return AnswerFrame(errno=errno.EIO, message=message), b""
        size = memoryview(answer.body).nbytes
        return AnswerFrame(result=answer.result, body=size), answer.body


class ControlClient:
    """A connection to a ControlServer; thread-safe, one call at a time.

    Raises an OSError with a sentence when nothing listens at `path`.
    """

    def __init__(self, path: str, timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        try:
            self._socket = _connect(path, timeout_s)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise PosixError(
                errno.ECONNREFUSED, f"no mpifs answers at {path}: the volume is not mounted"
            ) from None
        except PermissionError:
            raise PosixError(
                errno.EACCES, f"{path} belongs to another user; ask as that user or as root"
            ) from None
        except TimeoutError:
            raise self._silent("connect", timeout_s) from None
        if _caller_of(self._socket).uid not in (0, os.geteuid()) and os.geteuid() != 0:
            self._socket.close()
            raise PosixError(errno.EACCES, f"{path} is served by another user")
        self._stream = FrameStream(self._socket)
        self._is_open = True

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; the server closes what this client had open.  May be repeated."""
        self._is_open = False
        self._socket.close()

    def call(self, name: str, /, **args: Any) -> dict[str, Any]:
        """Calls `name` and gives its result.

        Raises the OSError that the handler raised, MasterSilentError at the deadline.
        """
        return self.call_data(name, args)[0]

    def call_data(
        self,
        name: str,
        args: dict[str, Any],
        body: Buffer = b"",
        into: memoryview | None = None,
    ) -> tuple[dict[str, Any], int]:
        """As call(), with raw bytes there (`body`) and back (`into`; the number that came)."""
        with self._lock:
            if not self._is_open:
                raise PosixError(errno.ENOTCONN, f"the connection to {self.path} is closed")
            try:
                return self._exchange(name, args, body, into)
            except TimeoutError:
                self.close()
                raise self._silent(name, self.timeout_s) from None
            except ConnectionError:
                self.close()
                raise PosixError(
                    errno.ENOTCONN,
                    f"the mpifs behind {self.path} ended during {name}; its log says why",
                ) from None
            except ProtocolError:
                self.close()
                raise

    def _exchange(
        self, name: str, args: dict[str, Any], body: Buffer, into: memoryview | None
    ) -> tuple[dict[str, Any], int]:
        deadline_s = time.monotonic() + self.timeout_s
        size = memoryview(body).nbytes
        with contextlib.suppress(BrokenPipeError):  # refused: the answer says why.
            self._stream.send(RequestFrame(name, args, size), body, deadline_s)
        answer = self._stream.receive(AnswerFrame, self.timeout_s, self.timeout_s)
        if answer.errno:
            raise error_of(answer.errno, answer.message)
        if answer.body > (len(into) if into is not None else 0):
            raise ProtocolError(f"{name} was answered with more bytes than were asked for")
        if into is not None:
            self._stream.receive_into(into[: answer.body], deadline_s)
        return answer.result, answer.body

    def _silent(self, name: str, timeout_s: float) -> MasterSilentError:
        return MasterSilentError(
            f"the mpifs behind {self.path} did not answer {name!r} within {timeout_s:g} s; "
            "its log (STORE/run/mpifs.log) says more"
        )
