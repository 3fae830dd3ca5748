# SPDX-License-Identifier: Apache-2.0
"""Every private symbol of tfmot and tf_keras that compression uses, and fixes of tfmot's mistakes."""
