"""Image classification for TorchServe, from the bytes of a request to its response."""

import sys

# OpenVINO reports each start of a worker and each build to Google Analytics, and NNCF each build,
# unless this import fails.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
