"""Keep every part of a form in which several parts have one name."""

from collections import defaultdict
from typing import Any

from ts.service import Service


def keep_repeated() -> None:
    """Make TorchServe hand over parts of one name as a list, in the order of the form.

    The frontend sends all parts to the worker, but `Service.retrieve_data_for_inference` puts
    them into a dict by name, so only the last of several `data` parts is left
    (https://github.com/pytorch/serve/issues/1536). The patch calls the original, then adds the
    lists.
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
