# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes cluster with JobSets, on this machine, for tests: pmrun's own and its users'.

    from pmrun.testing import fake_jobset

    with fake_jobset.start() as cluster:
        api = kubernetes.config.new_client_from_config(str(cluster.kubeconfig))

An API server that kubectl and the client libraries talk to, the controllers of JobSets and Jobs, a scheduler, and
kubelets whose pods are processes. docs/kubernetes.md says what is true to a real cluster and what is left out. Needs
the extra `k8s`. Invariant: what runs here is gone when the cluster is closed, or when whoever holds it is.
"""

from pmrun.testing.fake_jobset.handle import FakeJobSet, start
from pmrun.testing.fake_jobset.options import NodeSpec, Options

__all__ = ["FakeJobSet", "NodeSpec", "Options", "start"]
