"""Support of the coordination command: settings, methods, figures."""
