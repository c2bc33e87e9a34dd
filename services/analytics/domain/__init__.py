"""What analytics knows of windows and of time, without any I/O."""
