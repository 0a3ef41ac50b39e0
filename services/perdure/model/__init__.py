"""Plain values and pure functions: events, streams, states, folds. No I/O, clock or randomness."""
