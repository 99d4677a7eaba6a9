"""Tests of mpifs/job/mounts.py, hosts.py, sizes.py and mpi_launcher.py: the pure parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpifs.core.errors import FormatError, MpifsError
from mpifs.fuse.kernel_mounts import parse
from mpifs.job.hosts import parse_host_list, parse_hosts, spread
from mpifs.job.mounts import mount_at
from mpifs.job.mpi_launcher import MALLOC_VARIABLE, MPICH, OPENMPI, MpiLauncher
from mpifs.job.sizes import parse_size
from mpifs.job.state import VolumeFolder, begin, change, read


def test_mountinfo_with_escapes() -> None:
    table = (
        b"42 27 0:39 / /tmp/a\\040b\\012c rw - fuse.mpifs /x\\134y\\040z rw,user_id=0\n"
        b"43 27 0:40 / /\xff rw shared:1 master:2 - ext4 /dev/vda rw\nrubbish\n"
    )
    first, second = parse(table)
    assert (first.mountpoint, first.source, first.is_ours) == ("/tmp/a b\nc", "/x\\y z", True)
    assert (second.mountpoint, second.is_ours) == ("/\udcff", False)


def test_mount_at_knows_proc() -> None:
    found = mount_at("/proc")
    assert found is not None
    assert found.kind == "proc"
    assert mount_at("/proc/self") is None


def test_hosts() -> None:
    text = "# hosts\n\na slots=2\nb:3 # three\n10.0.0.1\nfe80::1\n"
    assert parse_hosts(text, "F") == ["a", "a", "b", "b", "b", "10.0.0.1", "fe80::1"]
    assert parse_host_list("a,b:2,c") == ["a", "b", "b", "c"]
    assert spread(["a", "b"], 5) == ["a", "b", "a", "b", "a"]


@pytest.mark.parametrize("text", ["", "a slots=0", "a bogus", "-oProxy", "a slots=x"])
def test_wrong_hosts(text: str) -> None:
    with pytest.raises(MpifsError):
        parse_hosts(text, "F")


def test_more_hosts_than_workers() -> None:
    with pytest.raises(MpifsError, match="3 hosts for 2 workers"):
        spread(["a", "b", "c"], 2)


def test_sizes() -> None:
    assert [parse_size(t) for t in ("4096", "64k", "64KiB", "1MiB", "2g")] == [
        4096, 65536, 65536, 1 << 20, 2 << 30,
    ]  # fmt: skip
    for text in ("", "MiB", "-1", "1.5M", "1x"):
        with pytest.raises(FormatError):
            parse_size(text)


def test_commands() -> None:
    openmpi = MpiLauncher("/o/mpiexec", OPENMPI, "5.0.11", "/o/libmpi.so.40", True)
    words = " ".join(openmpi.command(["p"], 5, "", "", []))
    assert words == "/o/mpiexec --with-ft ulfm --bind-to none --map-by :OVERSUBSCRIBE -n 5 p"
    words = " ".join(openmpi.command(["p"], 3, "/h", "/agent", ["A"]))
    assert words.endswith("-x A --prtemca plm_ssh_agent /agent -n 3 p")
    mpich = MpiLauncher("/m/mpiexec", MPICH, "5.0.2", "/m/libmpi.so.12", False)
    assert mpich.command(["p"], 2, "", "", []) == ["/m/mpiexec", "-n", "2", "p"]
    env = openmpi.environment({"PMIX_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "X": "y"})
    assert "PMIX_RANK" not in env
    assert "OMPI_COMM_WORLD_SIZE" not in env
    assert (env["X"], env["MPI4PY_LIBMPI"]) == ("y", "/o/libmpi.so.40")
    assert env["HOME"]
    name = "OMPI_MCA_btl_sm_eager_limit"
    assert int(env[name]) > 16 * 1024 + 4 * 1024 + 64
    assert openmpi.environment({name: "4096"})[name] == "4096"
    assert name not in mpich.environment({})


@pytest.mark.parametrize("kind", [OPENMPI, MPICH])
def test_chunks_lie_in_huge_pages_unless_the_user_says_otherwise(kind: str) -> None:
    launcher = MpiLauncher("/m/mpiexec", kind, "5.0.2", "", False)

    def tunables(users: str) -> str:
        base = {MALLOC_VARIABLE: users}
        found = launcher.environment(base)[MALLOC_VARIABLE]
        assert base == {MALLOC_VARIABLE: users}, "the variables of mpifs itself"
        return found

    huge, one_arena = "glibc.malloc.hugetlb=1", "glibc.malloc.arena_max=1"
    assert launcher.environment({})["GLIBC_TUNABLES"] == f"{huge}:{one_arena}"
    assert tunables("") == f"{huge}:{one_arena}"
    others = "glibc.malloc.check=3:glibc.rtld.optional_static_tls=512"
    assert tunables(others) == f"{others}:{huge}:{one_arena}"
    for users in ("glibc.malloc.hugetlb=0", f"{others}:glibc.malloc.hugetlb=2"):
        assert tunables(users) == f"{users}:{one_arena}"
        assert tunables(f"{users}:{others}") == f"{users}:{others}:{one_arena}"
    assert tunables("glibc.malloc.arena_max=8") == f"glibc.malloc.arena_max=8:{huge}"
    both = "glibc.malloc.arena_max=8:glibc.malloc.hugetlb=0"
    assert tunables(both) == both
    assert launcher.environment(launcher.environment({})) == launcher.environment({})


def test_state_ends_once(tmp_path: Path) -> None:
    folder = VolumeFolder(str(tmp_path))
    (tmp_path / "run").mkdir()
    begin(folder, "j", "/m\udcff", "")
    assert change(folder, "j", "ready", rank0=[1, 2])
    assert not change(folder, "other", "stopped")
    assert change(folder, "j", "stopped")
    assert not change(folder, "j", "crashed")
    assert read(folder)["state"] == "stopped"
    (tmp_path / "run" / "state.json").write_text("{")
    assert read(folder) == {}
