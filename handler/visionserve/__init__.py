"""Image classification for TorchServe, from the bytes of a request to its response."""
