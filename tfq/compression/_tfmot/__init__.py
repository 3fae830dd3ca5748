# SPDX-License-Identifier: Apache-2.0
"""All private symbols of tfmot and tf_keras that compression uses, and fixes of bugs in tfmot."""
