"""A package, so that the platform of its fixtures ends with the last of its tests."""
