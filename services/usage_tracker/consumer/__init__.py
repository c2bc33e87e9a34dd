"""What usage_tracker does beside answering: counting events, sending windows on, forgetting."""
