# SPDX-License-Identifier: Apache-2.0
"""Run requests on a board that is reached by a command's stdin and stdout, such as ssh."""
