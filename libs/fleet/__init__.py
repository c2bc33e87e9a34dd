"""The program ``mindweave``: the only package that knows every service."""
