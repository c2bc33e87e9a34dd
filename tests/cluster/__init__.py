"""The chart on a real Kubernetes: installed, used, changed under load, broken, and taken away."""
