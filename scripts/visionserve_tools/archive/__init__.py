"""Build archives, prove them against PyTorch, and keep them in a store."""
