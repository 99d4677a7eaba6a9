"""One rank of the endpoint contract over MPI; prints a line when all checks have passed."""

from __future__ import annotations

import faulthandler
import os
import traceback

from mpifs.transport.mpi import connect, is_launched, library_name
from tests.transport import contract


def main() -> None:
    faulthandler.dump_traceback_later(80, exit=True)
    assert is_launched()
    endpoint = connect()
    try:
        contract.run(endpoint)
    except BaseException:  # noqa: BLE001  # Reported by the parent.
        traceback.print_exc()
        os._exit(3)
    print(f"passed {endpoint.rank} of {endpoint.size} on {library_name()}", flush=True)
    endpoint.close()


main()
