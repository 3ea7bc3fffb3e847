"""Image classification for TorchServe: bytes, validated image, tensor, probabilities, answer."""
