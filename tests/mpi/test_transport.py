"""The transport over every MPI library at hand, with 1, 2 and 4 ranks."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.mpi.launcher import Library, libraries, run_ranks

LIBRARIES = [pytest.param(library, id=library.name) for library in libraries()]
OPENMPI = [each for each in LIBRARIES if each.id == "openmpi"]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("library", LIBRARIES)
def test_contract(library: Library, size: int) -> None:
    output = run_ranks(library, size, "tests.mpi.contract_program")
    for rank in range(size):
        assert f"passed {rank} of {size}" in output


@pytest.mark.parametrize("library", OPENMPI)
def test_death_of_a_rank_is_an_error_and_spares_the_others(library: Library) -> None:
    assert "survived" in run_ranks(library, 4, "tests.mpi.death_program")


@pytest.mark.parametrize("library", OPENMPI)
def test_sends_to_a_replacement_that_has_just_died(library: Library) -> None:
    killed = (0, 128 + signal.SIGKILL)  # the launcher's status is that of a spawned rank.
    output = run_ranks(library, 2, "tests.mpi.replaced_program", statuses=killed)
    assert "survived" in output


def test_importing_the_endpoint_loads_no_mpi_library() -> None:
    import subprocess

    code = "import sys, mpifs.transport.mpi; sys.exit('mpi4py.MPI' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
