"""Drop the lines that TorchServe's worker logs for each request and each batch."""

import logging


def quieten() -> None:
    """Log warnings and errors alone, and metrics except `PredictionTime`.

    `ts.model_service_worker` sets the root logger to INFO, and other modules of TorchServe then
    write a line for each request. Metrics are lines at INFO, too, so their logger keeps that
    level. `Service.predict` adds a `PredictionTime` line for each batch, which no setting turns
    off; the handler's metrics have the time of each stage instead.
    """
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("ts.metrics").setLevel(logging.INFO)
    logging.getLogger("ts.metrics.caching_metric").addFilter(
        lambda record: "PredictionTime" not in record.getMessage()
    )
