# SPDX-License-Identifier: Apache-2.0
"""AWS Batch as an engine of jobs: what the backends `batch` and `fake-batch` share."""
