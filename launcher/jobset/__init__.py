# SPDX-License-Identifier: Apache-2.0
"""Jobs as Kubernetes JobSets: what the backends `k8s` and `fake_jobset` share."""
