# SPDX-License-Identifier: Apache-2.0
"""What ``pm.current.parallel`` is. Apart from pmrun/current.py, since `dataclasses` is slow to load and few ask for it.

Invariant: the names are Metaflow's.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Parallel:
    """The job's nodes, as Metaflow's ``current.parallel`` names them.

    Attributes
    ----------
    main_ip : str
        Address of node 0.
    num_nodes : int
    node_index : int
        This node's number; 0 is the main node.
    control_task_id : str
        Name of the task on the main node.
    """

    main_ip: str
    num_nodes: int
    node_index: int
    control_task_id: str
