# SPDX-License-Identifier: Apache-2.0
"""What runs on the target; see __main__.py. Nothing here imports anything of tfq."""
