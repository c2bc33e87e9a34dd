"""Events: their catalog, their envelope, the bus port with its drivers, and what consumes them."""
