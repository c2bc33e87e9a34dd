"""``mindweave up``: one process per service on this machine, kept by a supervisor, behind Envoy."""
