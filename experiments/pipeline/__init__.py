"""The main job in parts: settings, fit, training, sample quality."""
