"""Several form parts of one name in one request."""

from collections import defaultdict
from typing import Any

from ts.service import Service


def keep_repeated_parts() -> None:
    """Make TorchServe hand over every form part, repeated names as a list in order.

    TorchServe 0.12 sends all parts to the worker, but `Service.retrieve_data_for_inference`
    puts them into a dict by name, so that of several `data` parts only the last one is left
    (https://github.com/pytorch/serve/issues/1536).
    """
    original = Service.retrieve_data_for_inference

    def retrieve(batch: list[dict[str, Any]]) -> Any:
        headers, rows, ids = original(batch)
        for row, request in zip(rows, batch, strict=True):
            parts = defaultdict(list)
            for parameter in request["parameters"]:
                parts[parameter["name"]].append(parameter["value"])
            row.update({name: values for name, values in parts.items() if len(values) > 1})
        return headers, rows, ids

    Service.retrieve_data_for_inference = staticmethod(retrieve)
