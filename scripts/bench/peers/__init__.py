"""The same classifier as other servers would serve it."""
