# SPDX-License-Identifier: Apache-2.0
"""Weight clustering: kernels with few distinct values, which compress well."""
