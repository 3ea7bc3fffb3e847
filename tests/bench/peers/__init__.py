"""The same classifier, served by other servers."""
