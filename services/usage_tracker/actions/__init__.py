"""Use cases of usage_tracker: taking events in, and counting them."""
