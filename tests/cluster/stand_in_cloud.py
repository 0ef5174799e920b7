"""Ray's own stand-in for a cloud, whose machines are raylets of this one, with memory; the autoscaler imports it."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class StandInCloud(FakeMultiNodeProvider):
    """A node type must say how much memory its machines have, or the autoscaler takes it for none, as stages ask for
    some; Ray's stand-in hands that on to where it may not be: a raylet looks for itself how much there is."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, float], labels: Any
    ) -> None:
        without = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, without, labels)
