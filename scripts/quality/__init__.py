"""How good the answers are: labelled photographs, and the statistics of what was measured."""
