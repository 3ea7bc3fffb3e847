"""Output of measurements: tables, and the circumstances that they were made in."""
