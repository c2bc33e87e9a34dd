"""Who is calling, from which service, and what that allows."""
