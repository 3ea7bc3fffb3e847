"""Measure this service and its peers side by side."""
