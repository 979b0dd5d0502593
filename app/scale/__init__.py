"""Runs the server as several replicas on Ray Serve. Only app/main.py imports this package."""
