"""Classify many images into rows: the inputs, the engines and the outputs."""
