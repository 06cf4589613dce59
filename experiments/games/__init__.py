"""Support of the polynomial games' command."""
