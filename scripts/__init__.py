"""Commands to build, serve, operate, measure and use the archive."""
