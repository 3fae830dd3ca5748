#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compile and run the Swift sources of bundles with Debian 13's Swift, on this computer instead of iOS.

    sudo .venv/bin/python tests/machines/swift.py DIRECTORY

Model.swift and SelfTest.swift run on the golden vectors of three bundles, and on copies with a changed file, which must
fail. LiteRtModel.swift is type-checked against declarations of TensorFlowLite. Exit code: 0 if all is as expected.

It needs root, debootstrap, a network connection, and 3 GB of disk below DIRECTORY, where the system stays for the next
time. It takes about six minutes, then one, so no make target runs it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "clients")]

from app_bundles import changed_copy, digits_bundle, normalized_bundle, several_types, several_types_bundle  # noqa: E402

RELEASE = "trixie"
PACKAGES = "swiftlang,libc6-dev,libstdc++-14-dev,libgcc-14-dev,binutils"
SCRIPT = """
set -e
mount -t proc proc /proc
cd /work
for name in digits normalized several; do
    swiftc -O -o $name.run $name/bundle/ios/Model.swift $name/bundle/ios/SelfTest.swift main.swift
    ./$name.run $name/bundle
done
./digits.run input output labels
swiftc -emit-module -emit-library -module-name TensorFlowLite TensorFlowLite.swift -o libTensorFlowLite.so
swiftc -typecheck -I . several/bundle/ios/*.swift
echo 'LiteRtModel.swift: passed'
"""
EXPECTED = [
    *("digits/bundle: passed", "normalized/bundle: passed", "several/bundle: passed"),
    *("input: golden vector 0: input image differs", "output: golden vector 1: output probabilities: differs by"),
    *("labels: golden vector 0: output probabilities: expected digit 0", "LiteRtModel.swift: passed"),
]


def make_system(system: Path) -> None:
    """Install Debian with Swift, unless an earlier run did."""
    if (system / "usr/bin/swiftc").exists():
        return
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(system)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def write_bundles(work: Path) -> None:
    """Write the bundles, and changed copies of one, into the system."""
    shutil.rmtree(work, ignore_errors=True)
    digits = digits_bundle("digits_int8", ("ios",), work / "digits")
    normalized_bundle("digits_int16x8", ("ios",), work / "normalized")
    several_types_bundle(several_types("int8", with_audio=True), ("ios",), work / "several")
    changed_copy(digits, work / "input", "golden/0_input_0.bin", lambda content: b"\x40" + content[1:])
    changed_copy(digits, work / "output", "golden/1_output_0.bin", lambda content: b"\x01" + content[1:])
    changed_copy(digits, work / "labels", "labels.txt", lambda content: b"".join(content.splitlines(True)[::-1]))
    shutil.copy(Path(__file__).with_name("main.swift"), work)
    shutil.copy(ROOT / "tests/clients/declarations/ios/TensorFlowLite.swift", work)


def main() -> int:
    """Run everything; return the exit code."""
    if len(sys.argv) != 2 or os.geteuid():
        print(__doc__, file=sys.stderr)
        return 2
    system = Path(sys.argv[1]).absolute() / "system"
    make_system(system)
    write_bundles(system / "work")
    # The mount disappears with the namespace.
    command = ["unshare", "--mount", "chroot", str(system), "/bin/bash", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    print(done.stdout, done.stderr, sep="", end="")
    lines = done.stdout.splitlines()
    is_right = len(lines) == len(EXPECTED) and all(map(str.startswith, lines, EXPECTED)) and done.returncode == 0
    print("passed" if is_right else "FAILED")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
