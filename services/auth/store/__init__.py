"""What auth keeps: SQL beside the method that runs it, and the cache's one script."""
