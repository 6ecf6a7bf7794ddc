# SPDX-License-Identifier: Apache-2.0
"""Jobs that an engine (Slurm, AWS Batch, Kubernetes, ...) runs: what all such backends share."""
