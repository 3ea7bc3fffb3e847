"""A server under stress: load, overload, faults, hostile bytes, and the queues that plan for it."""
