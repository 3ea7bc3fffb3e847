"""Put a server under load, overload, faults and hostile input, and compute its capacity."""
