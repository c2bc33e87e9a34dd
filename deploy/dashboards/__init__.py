"""Grafana's dashboards, made from here: ``python -m deploy.dashboards`` writes deploy/grafana."""
