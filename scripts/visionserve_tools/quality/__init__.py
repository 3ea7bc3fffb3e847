"""Measure the quality of answers on labelled photographs."""
