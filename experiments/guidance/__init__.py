"""Support of the steering command: settings and curves."""
