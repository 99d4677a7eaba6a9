"""mpifs beside GlusterFS and MooseFS on this machine in one run of `mpifs bench`; by hand, as root.

    .venv/bin/python tools/peers.py FOLDER [--size 256MiB] [--files 500] [--repeats 3]
                                    [--only PHASE,…] [--json FILE] [--html FILE]

Each peer has three storage daemons and keeps no replicas: GlusterFS a distributed volume of three
bricks, shards of 4 MiB; MooseFS a master and three chunkservers, goal 1.  mpifs has four workers.
All else is as it comes, but for MooseFS's priority of -19, which a busy machine would turn into
speed.  After the bench's table: mpifs ÷ the better peer, and what issue 5 asks.

Everything is in namespaces of its own (processes, mounts, network).  So the daemons have a loopback
that nobody else sees, and however this process ends, by kill -9 too, the kernel ends them all and
undoes the mounts.  To see those: `nsenter -m -p -t PID`, with the pid of a daemon.
FOLDER, new or empty, has all state; it is removed, unless the run failed: then it has the logs.

"Cold" is colder for mpifs: of a peer's file only the kernel's pages in its mount are dropped
(posix_fadvise), the daemons' files stay in memory; of mpifs its caches and the stores' pages too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpifs.bench.report import human
from mpifs.cli.bench import show
from mpifs.fuse.kernel_mounts import mounts

ASKED = {
    "write_close": 2, "write_fsync": 2, "read_cold": 2, "read_warm": 1, "write_hard": 2,
    "create_1": 3, "stat": 1, "small_read_cold": 2, "small_read_warm": 1, "list": 1, "unlink": 3,
}  # fmt: skip
"""So many times as fast as the better peer; 1 is ahead of it."""
VOLUME, GLUSTER, MOOSE = "mpifs-volume", "glusterfs", "moosefs"
COMMANDS = ("glusterd", "gluster", "glusterfs", "mfsmaster", "mfschunkserver", "mfsmount")
PACKAGES = "glusterfs-server glusterfs-client moosefs-master moosefs-chunkserver moosefs-client"
ADDRESS = "10.77.0.1"
"""Of the private loopback: neither peer takes 127.0.0.1 for a storage daemon."""
DAEMONS = 3
START_S = 60.0
END_S = 30.0  # for the bench to clear away in order, before the kernel does.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NEW_MOUNTS, NEW_PROCESSES, NEW_NETWORK = 0x20000, 0x20000000, 0x40000000  # <sched.h>
SIGNAL_AT_PARENTS_DEATH = 1  # <sys/prctl.h>


def call(*words: str | Path) -> str:
    """A command that ends by itself; its output.  Raises SystemExit with what it said."""
    command = [str(word) for word in words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=START_S)
    if done.returncode:
        raise SystemExit(f"{command} gave {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def daemon(log: Path, *words: str | Path) -> None:
    """Starts a command that stays in the foreground.  The end of the namespace is its end."""
    command = [str(word) for word in words]
    with open(log, "wb") as file:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def wait(what: str, check: Callable[[], bool]) -> None:
    """Raises SystemExit if it does not come true."""
    deadline = time.monotonic() + START_S
    while not check():
        if time.monotonic() > deadline:
            raise SystemExit(f"not after {START_S:g} s: {what}")
        time.sleep(0.1)


def start_moosefs(state: Path, mnt: Path) -> None:
    """Master, chunkservers and mount."""
    log, common = state / "master.log", {"WORKING_USER": "root", "NICE_LEVEL": 0}

    def config(name: str, **settings: object) -> Path:
        lines = [f"{key} = {value}\n" for key, value in {**common, **settings}.items()]
        (state / name).write_text("".join(lines))
        return state / name

    exports = state / "exports.cfg"
    exports.write_text("* / rw,alldirs,admin,maproot=0:0\n")
    (state / "metadata.mfs").write_text("MFSM NEW")
    lists = {"EXPORTS_FILENAME": exports, "TOPOLOGY_FILENAME": os.devnull}
    master = config("master.cfg", DATA_PATH=state, **lists)
    daemon(log, "mfsmaster", "-f", "-c", master, "start")
    wait("MooseFS's master is up", lambda: "initialized properly" in log.read_text())
    common.update(MASTER_HOST=ADDRESS, CSSERV_LISTEN_HOST=ADDRESS)
    for number in range(DAEMONS):
        home, disks = state / f"server{number}", state / f"disks{number}.cfg"
        (home / "chunks").mkdir(parents=True)
        disks.write_text(f"{home}/chunks\n")
        places = {"DATA_PATH": home, "HDD_CONF_FILENAME": disks}
        server = config(f"server{number}.cfg", CSSERV_LISTEN_PORT=9430 + number, **places)
        daemon(home / "server.log", "mfschunkserver", "-f", "-c", server, "start")
    wait("chunkservers are known", lambda: log.read_text().count("register end") == DAEMONS)
    daemon(state / "mount.log", "mfsmount", "-f", mnt, "-o", f"mfsmaster={ADDRESS},mfsnice=0")
    wait("MooseFS is mounted", lambda: os.path.ismount(mnt))
    call("mfssetgoal", "-r", "1", mnt)


def start_gluster(state: Path, mnt: Path) -> None:
    """glusterd, a volume, whose bricks' daemons glusterd starts, and mount."""
    for place in ("log/glusterfs", "lib/glusterd", "run/gluster"):  # no option moves all of it.
        here, there = state / place, Path("/var", place)
        here.mkdir(parents=True)
        there.mkdir(exist_ok=True)
        call("mount", "--bind", here, there)
    options = {
        "working-directory": state / "glusterd", "glusterd-sockfile": state / "glusterd.sock",
        "transport-type": "socket", "transport.socket.bind-address": ADDRESS, "ping-timeout": 0,
    }  # fmt: skip
    lines = "".join(f"    option {name} {value}\n" for name, value in options.items())
    config, log = state / "glusterd.vol", state / "log/glusterfs"
    config.write_text(f"volume management\n    type mgmt/glusterd\n{lines}end-volume\n")
    words = ("-f", config, "--pid-file", state / "glusterd.pid", "-l", log / "glusterd.log")
    daemon(state / "glusterd.out", "glusterd", "-N", *words)
    wait("glusterd is up", (state / "glusterd.sock").exists)
    tell = ("gluster", "--mode=script", f"--glusterd-sock={state}/glusterd.sock", "volume")
    bricks = [f"{ADDRESS}:{state}/brick{number}" for number in range(DAEMONS)]
    call(*tell, "create", "peers", *bricks, "force")
    call(*tell, "set", "peers", "features.shard", "on", "features.shard-block-size", "4MB")
    call(*tell, "start", "peers")
    where = (f"--volfile-server={ADDRESS}", "--volfile-id=peers", "-l", log / "mount.log")
    daemon(state / "mount.out", "glusterfs", "-N", *where, mnt)
    wait("GlusterFS is mounted", lambda: os.path.ismount(mnt))


def unshare(flags: int) -> None:
    """unshare(2), which Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise SystemExit(f"new namespaces: {os.strerror(ctypes.get_errno())}")


def settle_in() -> None:
    """Gives the first process of a process namespace its own mounts and network."""
    ctypes.CDLL(None).prctl(SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
    os.setsid()  # Ctrl-C is for the parent.
    unshare(NEW_MOUNTS | NEW_NETWORK)
    call("mount", "--make-rslave", "/")
    for mount in mounts():
        if mount.kind.startswith("fuse"):  # a copy would keep it alive when its owner unmounts it.
            call("umount", "-l", mount.mountpoint)
    call("mount", "-t", "proc", "proc", "/proc")
    call("mount", "-t", "tmpfs", "tmpfs", "/dev/shm")
    call("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    call("ip", "link", "set", "lo", "up")


def bench(folder: Path, words: list[str]) -> dict[str, Any]:
    """The document of a run, which mounts a new volume for itself."""
    mpifs = [sys.executable, "-m", "mpifs"]
    call(*mpifs, "mkfs", folder / VOLUME, "--workers=4")
    command = [*mpifs, "bench", VOLUME, GLUSTER, MOOSE, "--json", *words]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
    try:
        text = process.communicate()[0]
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        raise SystemExit(f"mpifs bench gave {process.returncode}")
    return dict(json.loads(text))


def compare(folder: Path, words: list[str], json_path: str) -> None:
    """All of it, in the first process of a namespace."""
    try:
        settle_in()
        for name, start in ((GLUSTER, start_gluster), (MOOSE, start_moosefs)):
            (folder / "state" / name).mkdir(parents=True)
            (folder / name).mkdir()
            start(folder / "state" / name, folder / name)
        document = bench(folder, words)
    except KeyboardInterrupt:
        return
    show(document)
    print(call("glusterd", "--version").splitlines()[0] + "; moosefs", call("mfsmaster", "-v"))
    rows = [judge(row) for row in document["phases"] if row["name"] in ASKED]
    print(sum(row["is_reached"] for row in rows), "of", len(rows), "rows as asked")
    if json_path:
        Path(json_path).write_text(json.dumps({**document, "peers": rows}) + "\n")


def judge(row: dict[str, Any]) -> dict[str, Any]:
    """Tells what a row comes to."""
    mine, *others = (row["targets"][name]["median"] for name in (VOLUME, GLUSTER, MOOSE))
    quotient, asked = mine / max(others), ASKED[row["name"]]
    is_reached = quotient >= asked if asked > 1 else quotient > 1
    best = (GLUSTER, MOOSE)[others.index(max(others))]
    print(
        f"{row['title']:<24}{human(mine):>8} {row['unit']:<5}{quotient:6.2f} × {best:<10}"
        f"asked: {asked if asked > 1 else '> 1'} ×{'' if is_reached else '   MISSED'}"
    )
    return {"name": row["name"], "quotient": quotient, "asked": asked, "is_reached": is_reached}


def main() -> int:
    """Runs `compare` in a process namespace and clears the folder away."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    usual = {"size": "256MiB", "files": "500", "repeats": "3", "only": ",".join(ASKED)}
    for name, value in {**usual, "json": "", "html": ""}.items():
        parser.add_argument(f"--{name}", default=value)
    args = parser.parse_args()
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        parser.error(f"no {', '.join(missing)}: apt-get install {PACKAGES}")
    if os.geteuid():
        parser.error("only root can start the daemons and mount them")
    folder, words = args.folder.resolve(), [f"--{name}={getattr(args, name)}" for name in usual]
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    words += [f"--html={os.path.abspath(args.html)}"] if args.html else []
    unshare(NEW_PROCESSES)
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    fork, is_interrupted = multiprocessing.get_context("fork"), False
    child = fork.Process(target=compare, args=(folder, words, args.json))
    child.start()
    try:
        child.join()
    except KeyboardInterrupt:
        is_interrupted = True
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child.terminate()
        child.join(END_S)
    child.kill()
    child.join()  # returns when all processes of the namespace have gone.
    if child.exitcode and not is_interrupted:
        print(f"failed; {folder}/state has the logs", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 130 if is_interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
