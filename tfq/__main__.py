# SPDX-License-Identifier: Apache-2.0
"""`python -m tfq` is the console script `tfq`."""

from tfq.cli.main import main

if __name__ == "__main__":
    main()
