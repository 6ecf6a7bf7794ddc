# SPDX-License-Identifier: Apache-2.0
"""AWS Batch on this machine, for tests: the rules of its multi-node parallel jobs, as pure functions of what happened."""
