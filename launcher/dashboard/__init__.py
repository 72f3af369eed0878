"""A run's metrics in Trackio's own dashboard, on this machine."""
