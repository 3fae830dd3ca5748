#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Create the virtual environment .venv with the newest supported Python that can create one.
#
#   .ci/create_venv.sh [PYTHON]     PYTHON: use this one and no other
#
# A Python on the PATH may be unable to: Debian's lacks ensurepip without python3-venv, and pyenv's shims fail for
# versions that are not selected. Only running it shows. A .venv that works is kept.
set -u
supported="3.13 3.12 3.11"
failures=$(mktemp) && log=$(mktemp) || exit 1
trap 'rm -f "$failures" "$log"' EXIT

if .venv/bin/python -m pip --version > /dev/null 2>&1; then exit 0; fi

# create PYTHON: create .venv, or note why it cannot.
create() {
    if ! command -v "$1" > /dev/null; then echo "  $1: not found" >> "$failures"; return 1; fi
    if ! version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> "$log"); then
        echo "  $1: cannot be started: $(head -n 1 "$log")" >> "$failures"
        return 1
    fi
    case " $supported " in
        *" $version "*) ;;
        *) echo "  $1: Python $version is not supported" >> "$failures"; return 1 ;;
    esac
    rm -rf .venv
    if "$1" -m venv .venv > "$log" 2>&1; then echo "created .venv with Python $version"; return 0; fi
    rm -rf .venv
    echo "  $1: cannot create a virtual environment (on Debian and Ubuntu: apt install python$version-venv)" >> "$failures"
    return 1
}

[ -n "${1:-}" ] || set -- python3.13 python3.12 python3.11 python3
for python; do
    if create "$python"; then exit 0; fi
done
{
    echo "tfq needs Python 3.11, 3.12 or 3.13 with its venv module. Tried:"
    cat "$failures"
    echo "On Debian 12 or later and Ubuntu 24.04: sudo apt install python3 python3-venv"
    echo "Elsewhere: make PYTHON=/path/to/python3.13"
} >&2
exit 1
