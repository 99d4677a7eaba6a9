"""A world of many ranks in virtual time: the loopback transport, whose messages take their time.

Rank 0's code is real and runs in threads of its own (tasks), the workers' service loops are real,
too.  One of them runs at a time.  What passes is virtual time:

- the processor time that a piece of code has used, as its thread's own clock tells;
- what is charged besides (`spend`): copies, calls of MPI, FUSE, disks;
- messages: a latency, and rank 0's link, on which they go one after the other in each direction.

Rank 0's tasks share one interpreter: the Python of one waits for that of the others, what is
charged besides does not.  Each worker has a processor, a disk and a link of its own.  So what the
figures say is what rank 0 can do, however many workers there are.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpifs.core.checksum import Buffer
from mpifs.core.limits import NO_BELL_SLEEP_S
from mpifs.transport.loopback import LoopbackEndpoint, make_loopbacks

_SWITCHES = 500
RUN_S = 60.0
"""Real seconds without an end mean that everybody waits for nothing."""


@dataclass(frozen=True)
class Costs:
    """What messages cost; the defaults were measured (mpifs/doc/scaling.md says how)."""

    latency_s: float = 12e-6
    bytes_per_s: float = 4e9
    """Of rank 0's link, in each direction."""
    call_s: float = 1.5e-6
    """MPI_Isend or MPI_Irecv beyond the Python around it."""
    copy_s: float = 1 / 12e9
    """Rank 0's processor for each byte sent or received."""
    is_near: bool = False
    """Ranks on one host can wake each other; others look each NO_BELL_SLEEP_S."""


class Actor:
    """Something that uses time: when it began this time, and what it was charged since."""

    def __init__(self) -> None:
        self.began = 0.0
        self.clock = 0.0
        self.extra = 0.0
        self.free = 0.0
        """Not before this moment can it do anything else."""

    def begin(self, when: float) -> None:
        """In the thread that does the work."""
        self.began, self.extra, self.clock = when, 0.0, time.thread_time()

    @property
    def used(self) -> float:
        """Processor time since `begin`."""
        return time.thread_time() - self.clock

    @property
    def now(self) -> float:
        """Its own moment."""
        return self.began + self.used + self.extra


class Task(Actor):
    """A thread of rank 0."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation
        self.go = threading.Semaphore(0)
        self.is_over = False
        self.waits = 0
        """Number of its pause; what would wake it out of an earlier one is too late."""

    def pause(self) -> None:
        """Lets the others go on until somebody wakes it."""
        simulation = self._simulation
        used = max(0.0, self.used - simulation.switch_s)
        simulation.python_s += used
        simulation.python_free = self.began + used
        self.free = self.began + used + self.extra
        simulation.back.release()
        self.go.acquire()
        self.begin(simulation.now)


class Bell:
    """See endpoint.Bell; in virtual time."""

    def __init__(self, simulation: Simulation, address: bytes) -> None:
        self._simulation = simulation
        self.address = address
        self._is_rung = False
        self._task: Task | None = None

    def wait(self, timeout_s: float) -> bool:
        """See endpoint.Bell."""
        if not self._is_rung:
            task = self._task = self._simulation.task()
            self._simulation.wake_at(task.now + timeout_s, task)
            task.pause()
            self._task = None
        was_rung, self._is_rung = self._is_rung, False
        return was_rung

    def ring_at(self, when: float) -> None:
        """It rings at that moment."""
        self._simulation.at(when, self._ring)

    def _ring(self) -> None:
        self._is_rung = True
        if self._task is not None:
            self._simulation.wake_at(self._simulation.now, self._task)


class Simulation:
    """The events in order, and the tasks.  Used by the thread that made it and one task at once."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.now = 0.0
        self.python_free = 0.0
        self.python_s = 0.0
        """Processor time of all tasks."""
        self.switch_s = 0.0
        self.back = threading.Semaphore(0)
        self.actor: Actor = Actor()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._tasks: dict[int, Task] = {}
        self.switch_s = self._measured_switch()

    def _measured_switch(self) -> float:
        """What a pause itself costs a task's thread: it is no cost of what is simulated."""

        def measure() -> None:
            task = self.task()
            for _ in range(_SWITCHES):
                self.wake_at(self.now, task)
                task.pause()

        self.start(measure)
        self.run()
        spent = self.python_s / _SWITCHES
        self.forget()
        return spent

    def forget(self) -> None:
        """Time begins anew: what was before is not counted."""
        self.python_s = 0.0

    def adopt(self) -> None:
        """Real code has just started a thread that waits on a bell: from now on it is a task."""
        if not self.back.acquire(timeout=RUN_S):
            raise SystemExit("a thread that was to be simulated does not wait on a bell")

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Does `action` at a moment."""
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), action))

    def task(self) -> Task:
        """The calling thread as a task."""
        me = threading.get_ident()
        found = self._tasks.get(me)
        if found is None:
            found = self._tasks[me] = Task(self)
            found.begin(self.now)
        return found

    def wake_at(self, when: float, task: Task) -> None:
        """Ends the pause in which the task is, or that it is about to begin."""
        number = task.waits

        def wake() -> None:
            if task.waits != number or task.is_over:
                return
            start = max(self.now, self.python_free, task.free)
            if start > self.now:
                self.at(start, wake)
                return
            task.waits += 1
            self.actor = task
            task.go.release()
            if not self.back.acquire(timeout=RUN_S):
                raise SystemExit("the simulation hangs: a task waits outside of it")

        self.at(when, wake)

    def start(self, work: Callable[[], None]) -> None:
        """A task that does `work`, from now on."""
        made = threading.Event()
        made_task: list[Task] = []

        def body() -> None:
            task = self.task()
            made_task.append(task)
            made.set()
            task.go.acquire()
            task.begin(self.now)
            try:
                work()
            finally:
                task.is_over = True
                del self._tasks[threading.get_ident()]  # the number may come again.
                used = task.used
                self.python_s += used
                self.python_free = task.began + used
                self.back.release()

        threading.Thread(target=body, daemon=True).start()
        made.wait()
        self.wake_at(self.now, made_task[0])

    def do(self, actor: Actor, action: Callable[[], None]) -> None:
        """Has a worker do something now, which takes as long as it takes."""
        self.actor = actor
        actor.begin(self.now)
        action()
        actor.free = actor.now

    def run(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Until nothing is left to happen, or `is_over`."""
        while self._events and not is_over():
            when, _, action = heapq.heappop(self._events)
            self.now = max(self.now, when)
            action()

    def spend(self, seconds: float) -> None:
        """Charges whoever is at work with time in which others may use the interpreter."""
        self.actor.extra += seconds

    def spend_python(self, seconds: float) -> None:
        """Charges whoever is at work with time of the interpreter."""
        self.actor.clock -= seconds


class _Send:
    """See endpoint.Operation: complete once the message has been delivered and taken."""

    received = 0

    def __init__(self, *, is_eager: bool) -> None:
        self._is_eager = is_eager
        self.inner: Any = None

    def test(self) -> bool:
        return self._is_eager or (self.inner is not None and self.inner.test())

    def cancel(self) -> bool:
        return self.test()


class SimulatedEndpoint:
    """See endpoint.Endpoint.  What is not here is the loopback's."""

    EAGER_BYTES = 4096

    def __init__(self, world: SimulatedWorld, inner: LoopbackEndpoint) -> None:
        self._world = world
        self._inner = inner
        self.life, self.probe, self.dead = inner.life, inner.probe, inner.dead
        self.rank = inner.rank
        self.size = inner.size
        self._told = 0.0
        """When its last short message arrives: the ring that follows does not overtake it."""
        self._server_bell = Bell(world.simulation, b"server-%d" % inner.rank)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def isend(self, dest: int, tag: int, data: Buffer) -> _Send:
        """Under way now; delivered to the loopback when it arrives."""
        simulation, costs = self._world.simulation, self._world.simulation.costs
        size = len(data)
        if self.rank == 0:
            simulation.spend(costs.call_s + size * costs.copy_s)
        is_eager = size <= self.EAGER_BYTES
        body = bytes(data) if is_eager else data
        send = _Send(is_eager=is_eager)

        def arrive() -> None:
            send.inner = self._inner.isend(dest, tag, body)
            for rank in (dest, self.rank):
                if rank:
                    self._world.poke(rank)

        when = self._world.arrival(self.rank, size)
        if is_eager:
            self._told = when
        simulation.at(when, arrive)
        return send

    def irecv(self, source: int, tag: int, into: bytearray | memoryview) -> Any:
        """See endpoint.Endpoint."""
        costs = self._world.simulation.costs
        if self.rank == 0:
            is_long = len(into) > 64 * 1024
            self._world.simulation.spend(costs.call_s + is_long * len(into) * costs.copy_s)
        receive = self._inner.irecv(source, tag, into)
        if source and receive.test():
            self._world.poke(source)  # its long send is over.
        return receive

    def bell(self) -> Bell:
        """See endpoint.Endpoint."""
        return self._world.bell_of_thread()

    def server_bell(self) -> Bell:
        """See endpoint.Endpoint."""
        return self._server_bell

    def ring(self, rank: int, address: bytes) -> None:
        """See endpoint.Endpoint.  A worker is woken by the message itself (`poke`)."""
        bell = self._world.bells.get(bytes(address))
        if bell is not None and (rank == self.rank or self.is_near(rank)):
            actor, costs = self._world.simulation.actor, self._world.simulation.costs
            is_own = rank == self.rank
            bell.ring_at(actor.now if is_own else max(actor.now + costs.latency_s, self._told))

    def is_near(self, rank: int) -> bool:
        """See endpoint.Endpoint."""
        return rank == self.rank or self._world.simulation.costs.is_near


class SimulatedWorld:
    """Rank 0 and its workers."""

    def __init__(self, size: int, costs: Costs) -> None:
        self.simulation = Simulation(costs)
        self.endpoints = [SimulatedEndpoint(self, inner) for inner in make_loopbacks(size)]
        self.bells: dict[bytes, Bell] = {}
        self.workers = [Actor() for _ in range(size)]
        self.serve: dict[int, Callable[[], bool]] = {}
        """What a worker's service loop does in one round; True if something moved."""
        self.messages = 0
        self._mine = threading.local()
        self._poked: set[int] = set()
        self._out_free = self._in_free = 0.0
        self._chance = random.Random(1)

    def bell_of_thread(self) -> Bell:
        """The calling thread's."""
        bell = getattr(self._mine, "bell", None)
        if bell is None:
            bell = self._mine.bell = Bell(self.simulation, b"bell-%d" % len(self.bells))
            self.bells[bell.address] = bell
        return bell

    def arrival(self, source: int, size: int) -> float:
        """When a message that is sent now will be there."""
        costs, now = self.simulation.costs, self.simulation.actor.now
        took = size / costs.bytes_per_s
        self.messages += 1
        if source:
            self._in_free = max(self._in_free, now) + took
            return self._in_free + costs.latency_s
        self._out_free = max(self._out_free, now) + took
        return self._out_free + costs.latency_s

    def poke(self, rank: int) -> None:
        """A worker's service loop has something to do, and does it when it looks."""
        if rank in self._poked:
            return
        self._poked.add(rank)
        simulation, actor = self.simulation, self.workers[rank]
        nap = 0.0 if simulation.costs.is_near else self._chance.random() * NO_BELL_SLEEP_S

        def serve() -> None:
            if actor.free > simulation.now:
                simulation.at(actor.free, serve)
                return
            self._poked.discard(rank)
            simulation.do(actor, self._rounds_of(rank))

        simulation.at(max(simulation.now + nap, actor.free), serve)

    def _rounds_of(self, rank: int) -> Callable[[], None]:
        def rounds() -> None:
            while self.serve[rank]():
                pass

        return rounds

    def close(self) -> None:
        """Gives the loopback's bells back."""
        for endpoint in self.endpoints:
            endpoint._inner.close()
