"""One Ray node as a process of its own: `python -m cluster.local_node`, started by cluster/local_cluster.py.

`ray start` would do, but it puts its nodes on this machine's address in the network, where others reach their ports.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_LOOPBACK_HOST = "127.0.0.1"
_LOOK_EVERY_S = 0.5


def main() -> None:
    """Start a node by the JSON in the first argument, say in a file where it is, and stay until it ends.

    The JSON's fields: `folder` for Ray's files and the answer, `number` of the node (1 is the head), `cpus`,
    `object_store_bytes`, `gcs` (address of the head, null for itself), `dashboard_port` (null for no dashboard).
    """
    told: dict[str, Any] = json.loads(sys.argv[1])
    from ray._private.authentication import authentication_token_setup as token
    from ray._private.node import Node
    from ray._private.parameter import RayParams
    from ray._private.utils import write_ray_address

    from cluster.ray_token import make_token

    # As `ray.init` does for a Ray that it starts: a token unless the user has said otherwise.
    token.enable_token_auth_by_default()
    make_token()
    token.ensure_token_if_auth_enabled(create_token_if_missing=True)
    head, dashboard_port = told["gcs"] is None, told["dashboard_port"]
    node = Node(
        RayParams(
            node_ip_address=_LOOPBACK_HOST,
            gcs_address=told["gcs"],
            num_cpus=told["cpus"],
            num_gpus=0,  # each node would count the machine's GPUs as its own
            object_store_memory=told["object_store_bytes"],
            temp_dir=told["folder"],
            # All nodes share this folder: two that unpacked what a job sends into one place would pull it away from
            # each other.
            runtime_env_dir_name=f"runtime_resources_{told['number']}",
            include_dashboard=dashboard_port is not None if head else None,
            dashboard_host=_LOOPBACK_HOST,
            dashboard_port=dashboard_port,
            # The default ports are for one node a machine.
            dashboard_agent_listen_port=0,
            min_worker_port=0,
            max_worker_port=0,
            include_log_monitor=head,  # pyright: ignore[reportArgumentType] -- Ray writes str there, and means bool
        ),
        head=head,
        shutdown_at_exit=True,  # SIGTERM ends the node in good order ...
        spawn_reaper=True,  # ... and SIGKILL takes all of it along
    )
    if head:
        # As `ray start` does. A submitted job reads there which Ray is its own; without, it takes any on this machine.
        write_ray_address(node.gcs_address, told["folder"])
    answer = {"gcs": node.gcs_address, "node_id": node.node_id, "dashboard": node.webui_url or None}
    file = Path(told["folder"]) / f"node-{told['number']}.json"
    file.with_suffix(".part").write_text(json.dumps(answer), encoding="utf-8")
    os.replace(file.with_suffix(".part"), file)
    while not node.dead_processes():
        time.sleep(_LOOK_EVERY_S)  # Ray has no call that waits for it
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    os._exit(1)


if __name__ == "__main__":
    main()
