"""What chaos, soak and overload share: clients that know the right answers."""
