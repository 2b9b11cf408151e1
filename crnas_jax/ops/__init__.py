"""Detection operations: pure functions on arrays of static shape."""
