"""Servicers: messages to domain, and back."""
