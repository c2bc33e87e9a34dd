"""Identity: users, sessions, credentials and every API key."""
